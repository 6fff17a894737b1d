"""The GenServer's contract, inline: what each callback and each answer does, on a given clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from actors import sys
from actors.exits import AlreadyStarted, CallFailed, Died, Exit, Ignored, NoProc, StartFailed, Timeout
from actors.genserver import Continue, GenServer, NoReply, Reply, Stop
from actors.inline import Deadlock, Inline
from actors.node import call, call_async, cast, exit, is_alive, join, me, reply, send, spawn, whereis
from actors.pid import From, Pid
from tests.servers import Crash, Echo, Loader, Trapper, Unwilling


@pytest.fixture
def node() -> Iterator[Inline]:
    with Inline() as node:
        yield node


class Log:
    """A witness that outlives the servers that speak to it."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def __call__(self, line: object) -> None:
        self.lines.append(line)


# Starting


def test_init_gets_the_arguments_of_spawn(node: Inline) -> None:
    assert call(spawn(Echo, 1, "two"), "seen") == [1, "two"]


def test_server_can_be_named_by_its_path(node: Inline) -> None:
    assert call(spawn("tests.servers:Echo", 1), "seen") == [1]


def test_handle_continue_runs_before_the_first_message(node: Inline) -> None:
    pid = spawn(Loader)
    send(pid, "first")
    assert call(pid, "seen") == ["load", "first"]


def test_spawn_returns_before_handle_continue(node: Inline) -> None:
    pid = spawn(Loader)
    assert sys.get_state(pid)["seen"] == ["load"]
    assert node.now() == 0.0


def test_name_is_taken_while_its_process_lives(node: Inline) -> None:
    first = spawn(Echo, name="echo")
    with pytest.raises(AlreadyStarted) as taken:
        spawn(Echo, name="echo")
    assert taken.value.pid == first == whereis("echo")


def test_name_is_free_after_the_death_and_the_next_life_has_the_next_epoch(node: Inline) -> None:
    first = spawn(Echo, name="echo")
    exit(first, "kill")
    assert whereis("echo") is None
    second = spawn(Echo, name="echo")
    assert (second.name, second.epoch) == ("echo", 2)
    assert not is_alive(first) and is_alive(second)


def test_message_to_a_name_reaches_who_lives_under_it_now(node: Inline) -> None:
    exit(spawn(Echo, name="echo"), "kill")
    pid = spawn(Echo, name="echo")
    cast("echo", "hello")
    assert call("echo", "me") == pid and call("echo", "seen") == ["hello"]


def test_ignore_is_told_from_failure(node: Inline) -> None:
    with pytest.raises(Ignored):
        spawn(Unwilling, "ignore")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("stop", "no_reason_to_live"),
        ("raise", ("error", "OSError", "no such file")),
        ("wrong", ("bad_return_value", "'wrong'")),
    ],
)
def test_failed_init_fails_spawn_with_its_reason(node: Inline, how: str, reason: object) -> None:
    with pytest.raises(StartFailed) as failed:
        spawn(Unwilling, how, name="unwilling")
    assert failed.value.reason == reason
    assert whereis("unwilling") is None


def test_start_that_takes_too_long_is_given_up_and_the_process_with_it(node: Inline) -> None:
    with pytest.raises(StartFailed) as failed:
        spawn(SlowStart, spawn(Echo), timeout=1.0)
    assert (failed.value.reason, node.now()) == ("timeout", 1.0)
    assert node.living("SlowStart") == []


class SlowStart(GenServer):
    def init(self, silent: Pid) -> None:
        call(silent, "later", timeout=60.0)


def test_class_that_cannot_be_found_fails_spawn(node: Inline) -> None:
    with pytest.raises(StartFailed) as failed:
        spawn("tests.servers:Nobody")
    assert failed.value.reason[:2] == ("error", "AttributeError")


# Calls


def test_call_gets_its_reply(node: Inline) -> None:
    assert call(spawn(Echo), {"a": 1}) == {"a": 1}


def test_none_is_an_answer(node: Inline) -> None:
    assert call(spawn(Echo), None) is None


def test_call_fails_in_the_caller_after_five_seconds(node: Inline) -> None:
    pid = spawn(Echo)
    with pytest.raises(Timeout):
        call(pid, "later")
    assert node.now() == 5.0
    assert is_alive(pid)


def test_late_reply_after_a_timeout_is_dropped(node: Inline) -> None:
    pid = spawn(Echo)
    with pytest.raises(Timeout):
        call(pid, "later", timeout=1)
    cast(pid, ("answer", "too late"))
    assert call(pid, "fresh") == "fresh"


def test_delayed_reply_comes_from_a_later_callback(node: Inline) -> None:
    class Slow(GenServer):
        def handle_call(self, message: object, from_: From) -> NoReply:
            self.from_ = from_
            return NoReply(then=Continue())

        def handle_continue(self, value: object) -> NoReply:
            reply(self.from_, "at last")
            return NoReply()

    assert call(spawn(Slow), "?") == "at last"


def test_another_process_may_give_the_reply(node: Inline) -> None:
    class Front(GenServer):
        def init(self, back: Pid) -> None:
            self.back = back

        def handle_call(self, message: object, from_: From) -> NoReply:
            cast(self.back, from_)
            return NoReply()

    class Back(GenServer):
        def handle_cast(self, message: From) -> NoReply:
            reply(message, "from behind")
            return NoReply()

    assert call(spawn(Front, spawn(Back)), "?") == "from behind"


def test_second_reply_to_one_call_is_dropped(node: Inline) -> None:
    class Eager(GenServer):
        def handle_call(self, message: object, from_: From) -> Reply:
            reply(from_, "first")
            return Reply("second")

    pid = spawn(Eager)
    assert [call(pid, "?"), call(pid, "?")] == ["first", "first"]


def test_call_to_nobody_is_noproc(node: Inline) -> None:
    pid = spawn(Echo)
    exit(pid, "kill")
    for server in (pid, "no such name"):
        with pytest.raises(NoProc) as failed:
            call(server, "hello")
        assert failed.value.reason == "noproc"


@pytest.mark.parametrize(
    ("message", "reason"),
    [(Crash("boom"), ("error", "ValueError", "boom")), ("bad", ("bad_return_value", "'not an answer'"))],
)
def test_call_that_kills_its_server_fails_with_the_reason(node: Inline, message: object, reason: object) -> None:
    pid = spawn(Echo)
    with pytest.raises(Died) as failed:
        call(pid, message)
    assert failed.value.reason == reason
    assert not is_alive(pid)


def test_all_waiting_callers_learn_of_the_death(node: Inline) -> None:
    server, asker = spawn(Echo), spawn(Echo)
    call(server, ("send_after", 1, Crash("boom")))
    assert call(asker, ("try", server, "later", 5)) == ("Died", ("error", "ValueError", "boom"))


def test_failed_call_that_nobody_catches_ends_the_caller(node: Inline) -> None:
    server, caller = spawn(Echo), spawn(Echo)
    with pytest.raises(Died) as failed:
        call(caller, ("call", server, Crash("boom")))
    assert failed.value.reason[:2] == ("error", "Died")
    assert not is_alive(caller)


def test_stop_with_a_reply_answers_and_ends(node: Inline) -> None:
    pid = spawn(Echo)
    assert call(pid, "stop") == "bye"
    assert join(pid) == "noproc" and node.reasons[pid] == "normal"


def test_call_to_oneself_is_refused(node: Inline) -> None:
    pid = spawn(Echo)
    with pytest.raises(Died) as failed:
        call(pid, ("call", pid, "hello"))
    assert "calls itself" in str(failed.value)


def test_two_that_call_each_other_time_out(node: Inline) -> None:
    one, two = spawn(Echo), spawn(Echo)
    assert call(one, ("try", two, ("try", one, "hello", 2), 10)) == ("Timeout", "timeout")
    assert node.now() == 2.0


def test_wait_for_ever_that_cannot_end_is_found_out(node: Inline) -> None:
    with pytest.raises(Deadlock):
        call(spawn(Echo), "later", timeout=None)


def test_call_knows_its_caller(node: Inline) -> None:
    server, caller = spawn(Echo), spawn(Echo)
    assert call(server, "caller") is None
    assert call(caller, ("call", server, "caller")) == caller


def test_call_async_is_call(node: Inline) -> None:
    awaiting = call_async(spawn(Echo), "hello")
    with pytest.raises(StopIteration) as done:
        awaiting.send(None)
    assert done.value.value == "hello"


def test_call_is_not_slower_with_a_long_mailbox(node: Inline) -> None:
    pid = spawn(Echo)
    for number in range(20_000):
        cast(pid, number)
    assert len(call(pid, "seen")) == 20_000


# Casts, infos, order


def test_cast_to_nobody_is_no_error(node: Inline) -> None:
    pid = spawn(Echo)
    exit(pid, "kill")
    cast(pid, "hello")
    send("no such name", "hello")
    exit("no such name", "kill")


def test_messages_of_one_sender_keep_their_order(node: Inline) -> None:
    pid = spawn(Echo)
    cast(pid, 1)
    send(pid, 2)
    cast(pid, 3)
    assert call(pid, "seen") == [1, 2, 3]


def test_unexpected_info_is_logged_and_survived(node: Inline, caplog: pytest.LogCaptureFixture) -> None:
    pid = spawn(GenServer)
    send(pid, "surprise")
    node.run()
    assert is_alive(pid) and "surprise" in caplog.text


def test_unexpected_cast_is_a_crash(node: Inline) -> None:
    pid = spawn(GenServer)
    cast(pid, "surprise")
    node.run()
    assert node.reasons[pid][:2] == ("error", "NotImplementedError")


# Exit reasons, terminate


def test_exit_raised_in_a_callback_is_the_reason(node: Inline) -> None:
    class Quitter(GenServer):
        def handle_cast(self, message: object) -> NoReply:
            raise Exit(("shutdown", "tired"))

    pid = spawn(Quitter)
    cast(pid, "go")
    assert join(pid) == ("shutdown", "tired")


@pytest.mark.parametrize("reason", ["normal", "shutdown", ("shutdown", "x")])
def test_orderly_end_leaves_no_crash_report(node: Inline, reason: object, caplog: pytest.LogCaptureFixture) -> None:
    pid = spawn(Echo)
    cast(pid, ("stop", reason))
    assert join(pid) == reason
    assert not caplog.records


def test_crash_leaves_a_report_with_the_traceback(node: Inline, caplog: pytest.LogCaptureFixture) -> None:
    cast(spawn(Echo), Crash("boom"))
    node.run()
    assert "ValueError: boom" in caplog.text


def test_terminate_runs_at_stop_and_after_an_exception(node: Inline) -> None:
    log = Log()
    cast(spawn(Trapper, log), ("stop", "shutdown"))
    cast(spawn(Trapper, log), Crash("boom"))
    node.run()
    assert log.lines == ["shutdown", ("error", "ValueError", "boom")]


def test_terminate_does_not_run_at_a_kill(node: Inline) -> None:
    log = Log()
    pid = spawn(Trapper, log)
    exit(pid, "kill")
    assert node.reasons[pid] == "killed" and log.lines == []


def test_exception_in_terminate_becomes_the_reason(node: Inline) -> None:
    class Clumsy(Echo):
        def terminate(self, reason: object) -> None:
            raise KeyError("lost")

    pid = spawn(Clumsy)
    cast(pid, ("stop", "normal"))
    assert join(pid) == ("error", "KeyError", "'lost'")


def test_stop_waits_for_terminate(node: Inline) -> None:
    log = Log()
    pid = spawn(Trapper, log)
    sys.stop(pid, "shutdown")
    assert log.lines == ["shutdown"] and not is_alive(pid)


def test_stop_of_nobody_is_noproc(node: Inline) -> None:
    pid = spawn(Echo)
    sys.stop(pid)
    with pytest.raises(NoProc):
        sys.stop(pid)


def test_stop_that_takes_too_long_leaves_the_server_alive(node: Inline) -> None:
    helper = spawn(Echo)

    class Stubborn(Echo):
        def handle_cast(self, message: Any) -> NoReply:
            call(helper, "later", timeout=100)
            return NoReply()

    pid = spawn(Stubborn)

    class Stopper(GenServer):
        def handle_call(self, message: object, from_: From) -> Reply:
            cast(pid, "work")
            try:
                sys.stop(pid, timeout=1)
            except Timeout:
                return Reply("too long")
            return Reply("stopped")

    assert call(spawn(Stopper), "go", timeout=500) == "too long"


# Exit signals


def test_exit_signal_ends_a_server_that_does_not_trap(node: Inline) -> None:
    pid = spawn(Echo)
    exit(pid, "shutdown")
    assert node.reasons[pid] == "shutdown"


def test_normal_exit_signal_from_another_is_ignored(node: Inline) -> None:
    pid = spawn(Echo)
    exit(pid, "normal")
    assert is_alive(pid)


def test_trapped_exit_signal_is_a_message(node: Inline) -> None:
    child_of_one, one = spawn(Trapper), spawn(Echo)
    call(one, ("link", child_of_one))
    exit(one, "shutdown")
    assert call(child_of_one, "seen") == [("exit", one, "shutdown")]


def test_trapped_exit_signal_of_the_parent_ends_in_order(node: Inline) -> None:
    log = Log()
    pid = spawn(Trapper, log)
    exit(pid, "shutdown")
    node.run()
    assert log.lines == ["shutdown"] and node.reasons[pid] == "shutdown"


def test_process_killed_in_the_middle_of_a_callback_does_nothing_more(node: Inline) -> None:
    log = Log()

    class Suicide(GenServer):
        def handle_cast(self, message: object) -> NoReply:
            exit(me(), "kill")
            log("still here")
            return NoReply()

    pid = spawn(Suicide)
    cast(pid, "go")
    node.run()
    assert log.lines == [] and node.reasons[pid] == "killed"


def test_waiting_process_that_is_killed_does_not_wake_up(node: Inline) -> None:
    class Killer(GenServer):
        def handle_call(self, message: object, from_: From) -> Reply:
            assert from_.caller is not None
            exit(from_.caller, "kill")
            return Reply("sorry")

    victim, killer = spawn(Echo), spawn(Killer)
    with pytest.raises(Died) as failed:
        call(victim, ("call", killer, "please"))
    assert failed.value.reason == "killed"


# Timers, monitors, links


def test_timer_fires_at_its_time(node: Inline) -> None:
    pid = spawn(Echo)
    call(pid, ("send_after", 10, "tick"))
    node.advance(9.9)
    assert call(pid, "seen") == []
    node.advance(0.2)
    assert call(pid, "seen") == ["tick"]


def test_timers_fire_in_the_order_of_their_times(node: Inline) -> None:
    pid = spawn(Echo)
    for seconds in (3, 1, 2):
        call(pid, ("send_after", seconds, seconds))
    node.advance(5)
    assert call(pid, "seen") == [1, 2, 3] and node.now() == 5.0


def test_cancelled_timer_does_not_fire(node: Inline) -> None:
    pid = spawn(Echo)
    ref = call(pid, ("send_after", 1, "tick"))
    assert call(pid, ("cancel", ref)) is True
    assert call(pid, ("cancel", ref)) is False
    node.advance(2)
    assert call(pid, "seen") == []


def test_timer_that_is_cancelled_after_it_fired_is_stale_and_ignored(node: Inline) -> None:
    pid = spawn(Echo)
    ref = call(pid, ("send_after", 1, "tick"))
    sys.suspend(pid)
    node.advance(2)  # it has fired, and waits in the mailbox behind the cancel that comes now

    cast(pid, "before")
    node._cells[pid].loop.cancel_timer(ref)
    sys.resume(pid)
    assert call(pid, "seen") == ["before"]


def test_timers_of_a_dead_process_are_gone(node: Inline) -> None:
    pid = spawn(Echo)
    call(pid, ("send_after", 1, "tick"))
    sys.stop(pid)
    node.advance(2)


@pytest.mark.parametrize("reason", ["normal", "shutdown", ("shutdown", "x"), "boom"])
def test_monitor_gets_one_down_with_the_reason(node: Inline, reason: object) -> None:
    watcher, pid = spawn(Echo), spawn(Echo)
    call(watcher, ("monitor", pid))
    cast(pid, ("stop", reason))
    node.run()
    assert call(watcher, "seen") == [(pid, reason)]


def test_monitor_of_a_killed_process_says_killed(node: Inline) -> None:
    watcher, pid = spawn(Echo), spawn(Echo)
    call(watcher, ("monitor", pid))
    exit(pid, "kill")
    assert call(watcher, "seen") == [(pid, "killed")]


def test_monitor_of_nobody_says_noproc_at_once(node: Inline) -> None:
    watcher, pid = spawn(Echo), spawn(Echo)
    exit(pid, "kill")
    call(watcher, ("monitor", pid))
    assert call(watcher, "seen") == [(pid, "noproc")]


def test_two_monitors_give_two_downs(node: Inline) -> None:
    watcher, pid = spawn(Echo), spawn(Echo)
    first, second = call(watcher, ("monitor", pid)), call(watcher, ("monitor", pid))
    assert first != second
    exit(pid, "kill")
    assert call(watcher, "seen") == [(pid, "killed")] * 2


def test_demonitor_takes_back_a_down_that_already_waits(node: Inline) -> None:
    watcher, pid = spawn(Echo), spawn(Echo)
    ref = call(watcher, ("monitor", pid))
    sys.suspend(watcher)
    exit(pid, "kill")
    node._cells[watcher].loop.close_monitor(ref)
    sys.resume(watcher)
    assert call(watcher, "seen") == []


def test_link_takes_both_ways(node: Inline) -> None:
    for first, second in ((0, 1), (1, 0)):
        pids = [spawn(Echo), spawn(Echo)]
        call(pids[0], ("link", pids[1]))
        cast(pids[first], Crash("boom"))
        node.run()
        assert node.reasons[pids[second]] == ("error", "ValueError", "boom")


def test_normal_end_does_not_take_the_linked_along(node: Inline) -> None:
    one, two = spawn(Echo), spawn(Echo)
    call(one, ("link", two))
    cast(two, ("stop", "normal"))
    node.run()
    assert is_alive(one)


def test_unlinked_process_survives(node: Inline) -> None:
    one, two = spawn(Echo), spawn(Echo)
    call(one, ("link", two))
    call(one, ("unlink", two))
    node.run()
    exit(two, "kill")
    assert is_alive(one)


def test_spawn_link_links(node: Inline) -> None:
    parent = spawn(Echo)
    child = call(parent, ("spawn_link", Echo))
    node.run()
    exit(parent, "shutdown")
    assert node.reasons[child] == "shutdown"


def test_link_to_nobody_is_an_exit_signal(node: Inline) -> None:
    gone, pid = spawn(Echo), spawn(Trapper)
    exit(gone, "kill")
    call(pid, ("link", gone))
    assert call(pid, "seen") == [("exit", gone, "noproc")]


def test_functions_that_need_a_mailbox_say_so(node: Inline) -> None:
    with pytest.raises(RuntimeError, match="from inside a process"):
        me()


def test_without_a_node_the_error_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="connect"):
        whereis("anybody")


# Looking inside


def test_get_state_shows_the_attributes(node: Inline) -> None:
    assert sys.get_state(spawn(Echo, 1)) == {"seen": [1], "open": []}


def test_get_state_shows_what_format_state_says(node: Inline) -> None:
    class Secretive(Echo):
        def format_state(self) -> object:
            return "nothing to see"

    assert sys.get_state(spawn(Secretive)) == "nothing to see"


def test_replace_state_puts_new_attributes_in_place(node: Inline) -> None:
    pid = spawn(Echo)
    assert sys.replace_state(pid, lambda state: {**state, "seen": ["new"]})["seen"] == ["new"]
    assert call(pid, "seen") == ["new"]


def test_replace_state_that_fails_changes_nothing(node: Inline) -> None:
    pid = spawn(Echo, "old")
    with pytest.raises(ValueError, match="KeyError"):
        sys.replace_state(pid, lambda state: state["nothing"])
    assert call(pid, "seen") == ["old"]


def test_suspended_server_keeps_its_messages_until_resume(node: Inline) -> None:
    pid = spawn(Echo)
    sys.suspend(pid)
    cast(pid, 1)
    cast(pid, 2)
    with pytest.raises(Timeout):
        call(pid, "seen")
    assert sys.statistics(pid).is_suspended and sys.statistics(pid).num_postponed == 3
    sys.resume(pid)
    assert call(pid, "seen") == [1, 2]


def test_what_was_postponed_is_not_handled_by_a_server_that_has_ended(node: Inline) -> None:
    heard: list[object] = []

    class Once(GenServer):
        def init(self) -> None: ...

        def handle_cast(self, message: object) -> Stop:
            heard.append(message)
            return Stop("done")

    pid = spawn(Once)
    sys.suspend(pid)
    cast(pid, 1)
    cast(pid, 2)
    node.run()
    with suppress(CallFailed):
        sys.resume(pid)
    node.run()
    assert heard == [1]


def test_suspended_server_can_be_stopped(node: Inline) -> None:
    pid = spawn(Echo)
    sys.suspend(pid)
    sys.stop(pid)
    assert not is_alive(pid)


def test_statistics_count_messages_and_replies(node: Inline) -> None:
    pid = spawn(Echo)
    cast(pid, 1)
    call(pid, "seen")
    node.advance(7)
    statistics = sys.statistics(pid)
    assert (statistics.num_messages, statistics.num_replies, statistics.seconds_alive) == (2, 1, 7.0)


def test_trace_keeps_the_last_events(node: Inline) -> None:
    pid = spawn(Echo)
    call(pid, "unseen")
    sys.trace(pid, keep=2)
    call(pid, "a")
    call(pid, "b")
    assert [(event.event, getattr(event.content, "message", event.content)) for event in sys.traced(pid)] == [
        ("in", "b"),
        ("reply", "b"),
    ]
    sys.trace(pid, keep=0)
    call(pid, "c")
    assert sys.traced(pid) == []


def test_child_spec_names_the_server_by_its_path() -> None:
    spec = Echo.child_spec(1, 2, id="echo", restart="transient")
    assert (spec.id, spec.start, spec.restart) == ("echo", ("tests.servers:Echo", 1, 2), "transient")


def test_stop_is_an_answer_of_every_callback(node: Inline) -> None:
    class Brief(GenServer):
        def init(self) -> Continue:
            return Continue()

        def handle_continue(self, value: object) -> Stop:
            return Stop(("shutdown", "done"))

    assert join(spawn(Brief)) == ("shutdown", "done")
