%% The real supervisor, driven by schedules: one line of trace for each.
%% What it prints is what tests/test_otp_differential.py prints of our supervisor, event for event.
-module(otp_oracle).
-export([main/2, init/1, start_child/1, child/2]).

main(In, Out) ->
    logger:set_primary_config(level, none),
    process_flag(trap_exit, true),
    {ok, Schedules} = file:consult(In),
    ok = file:write_file(Out, [[run(Schedule), $\n] || Schedule <- Schedules]),
    halt(0).

init(Arg) -> {ok, Arg}.

run({{Strategy, Intensity, Auto}, Children, Plans, Ops}) ->
    [ets:new(Table, [named_table, public, ordered_set]) || Table <- [log, plan, starts]],
    [ets:insert(plan, Plan) || Plan <- Plans],
    Flags = #{strategy => Strategy, intensity => Intensity, period => 3600, auto_shutdown => Auto},
    Trace = case supervisor:start_link(?MODULE, {Flags, [spec(Child) || Child <- Children]}) of
        {ok, Sup} ->
            [report("up", alive, Sup) | steps(Sup, Ops)];
        {error, {shutdown, {failed_to_start_child, Id, _}}} ->
            receive {'EXIT', _, _} -> ok end,
            [io_lib:format("not_started ~w [~s]", [Id, events()])]
    end,
    [ets:delete(Table) || Table <- [log, plan, starts]],
    lists:join(" | ", Trace).

steps(Sup, []) ->
    exit(Sup, shutdown),
    receive {'EXIT', Sup, Reason} -> [io_lib:format("end ~w [~s]", [Reason, events()])] end;
steps(Sup, [Op | Ops]) ->
    {Result, State} = do(Sup, Op),
    case State of
        alive -> [report(Result, alive, Sup) | steps(Sup, Ops)];
        _ -> [report(Result, State, Sup)]
    end.

do(Sup, {exits, Exits}) ->
    Pids = running(Sup),
    Doomed = [{maps:get(Id, Pids), Reason} || {Id, Reason} <- Exits, maps:is_key(Id, Pids)],
    ok = sys:suspend(Sup),
    lists:foldl(fun(Each, Queued) -> doom(Sup, Each, Queued), Queued + 1 end, queued(Sup) + 1, Doomed),
    ok = sys:resume(Sup),
    {integer_to_list(length(Doomed)), settle(Sup, [Pid || {Pid, _} <- Doomed])};
do(_Sup, {plan, Id, Plan}) ->
    ets:insert(plan, {Id, Plan}),
    {"planned", alive};
do(Sup, {terminate, Id}) -> answer(Sup, fun() -> supervisor:terminate_child(Sup, Id) end);
do(Sup, {restart, Id}) -> answer(Sup, fun() -> supervisor:restart_child(Sup, Id) end);
do(Sup, {delete, Id}) -> answer(Sup, fun() -> supervisor:delete_child(Sup, Id) end);
do(Sup, {start, Child}) -> answer(Sup, fun() -> supervisor:start_child(Sup, spec(Child)) end).

doom(Sup, {Pid, Reason}, Queued) ->
    Ref = monitor(process, Pid),
    case Reason of
        kill -> exit(Pid, kill);
        _ -> Pid ! {die, Reason}
    end,
    receive {'DOWN', Ref, process, Pid, _} -> ok end,
    wait_for_queue(Sup, Queued).

%% The supervisor has heard of it before the next one dies.
wait_for_queue(Sup, Queued) ->
    case queued(Sup) >= Queued of
        true -> ok;
        false -> erlang:yield(), wait_for_queue(Sup, Queued)
    end.

queued(Sup) ->
    {message_queue_len, Length} = process_info(Sup, message_queue_len),
    Length.

answer(Sup, Ask) ->
    Result = case Ask() of
        ok -> "ok";
        {ok, undefined} -> "ignored";
        {ok, _} -> "started";
        {error, {already_started, _}} -> "already_started";
        {error, Reason} when Reason =:= already_present; Reason =:= running; Reason =:= restarting;
                             Reason =:= not_found -> atom_to_list(Reason);
        {error, _} -> "failed"
    end,
    {Result, settle(Sup, [])}.

settle(Sup, Gone) ->
    try supervisor:which_children(Sup) of
        Children ->
            case lists:any(fun({_, Pid, _, _}) -> Pid =:= restarting orelse lists:member(Pid, Gone) end, Children) of
                true -> erlang:yield(), settle(Sup, Gone);
                false -> alive
            end
    catch
        exit:_ -> receive {'EXIT', Sup, Reason} -> {down, Reason} end
    end.

running(Sup) ->
    maps:from_list([{Id, Pid} || {Id, Pid, _, _} <- supervisor:which_children(Sup), is_pid(Pid)]).

report(Result, {down, Reason}, _Sup) ->
    io_lib:format("~s down ~w [~s]", [Result, Reason, events()]);
report(Result, alive, Sup) ->
    Children = lists:sort([state(Id, Pid) || {Id, Pid, _, _} <- supervisor:which_children(Sup)]),
    Counts = supervisor:count_children(Sup),
    io_lib:format("~s (~s) ~w/~w [~s]",
        [Result, lists:join(" ", Children), proplists:get_value(active, Counts), proplists:get_value(specs, Counts),
         events()]).

state(Id, Pid) when is_pid(Pid) -> io_lib:format("~w:~w", [Id, ets:lookup_element(starts, Id, 2)]);
state(Id, undefined) -> io_lib:format("~w:down", [Id]).

events() ->
    Events = [Event || {_, Event} <- ets:tab2list(log)],
    ets:delete_all_objects(log),
    lists:join(" ", Events).

log(Format, Args) -> ets:insert(log, {erlang:unique_integer([monotonic]), io_lib:format(Format, Args)}).

spec({Id, Restart, Shutdown, Significant}) ->
    #{id => Id, start => {?MODULE, start_child, [Id]}, restart => Restart, shutdown => Shutdown,
      significant => Significant}.

start_child(Id) ->
    case planned(Id) of
        fail -> log("~w fails", [Id]), {error, boom};
        ignore -> log("~w ignored", [Id]), ignore;
        start ->
            N = ets:update_counter(starts, Id, 1, {Id, 0}),
            log("~w starts ~w", [Id, N]),
            proc_lib:start_link(?MODULE, child, [Id, self()])
    end.

planned(Id) ->
    case ets:lookup(plan, Id) of
        [{_, [Next | Rest]}] -> ets:insert(plan, {Id, Rest}), Next;
        _ -> start
    end.

child(Id, Supervisor) ->
    process_flag(trap_exit, true),
    proc_lib:init_ack({ok, self()}),
    receive
        {die, Reason} -> exit(Reason);
        {'EXIT', Supervisor, Reason} -> log("~w stops", [Id]), exit(Reason)
    end.
