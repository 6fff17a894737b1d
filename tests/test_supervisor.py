"""Supervisors, inline: what Erlang's test suite asks of `supervisor` and Elixir's of `DynamicSupervisor`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from actors import dynamic_supervisor, sys
from actors.children import Counts, Refused
from actors.dynamic_supervisor import DynamicSupervisor
from actors.exits import Exit, NoProc, Reason, StartFailed
from actors.genserver import Ignore, Started, Stop
from actors.inline import Inline
from actors.node import cast, exit, is_alive, send, spawn, whereis
from actors.pid import Pid
from actors.supervision import BadSpec, ChildSpec, Policy
from actors.supervisor import (
    Supervisor,
    child_spec_of,
    count_children,
    delete_child,
    restart_child,
    start_child,
    terminate_child,
    which_children,
)
from tests.servers import Crash, Echo, Sleeper, Trapper

REASONS: list[Any] = ["normal", "shutdown", ("shutdown", "x"), "boom", "kill"]


@pytest.fixture
def node() -> Iterator[Inline]:
    with Inline() as node:
        yield node


class Stage:
    """What the children of a test share: how their next starts go, and what they did."""

    def __init__(self) -> None:
        self.plans: dict[str, list[str]] = {}
        self.events: list[str] = []

    def spec(self, id: str, restart: Any = "permanent", **fields: Any) -> ChildSpec:
        return ChildSpec(id, (Actor, self, id), restart, **fields)

    def take(self) -> list[str]:
        events, self.events = self.events, []
        return events


class Actor(Trapper):
    """Reports to its stage."""

    def init(self, stage: Stage, id: str) -> Started:  # type: ignore[override]
        super().init()
        self.stage, self.id = stage, id
        match stage.plans[id].pop(0) if stage.plans.get(id) else "start":
            case "fail":
                stage.events.append(f"{id} fails")
                return Stop("boom")
            case "raise":
                raise ValueError("boom")
            case "exit":
                raise Exit(("shutdown", "x"))
            case "ignore":
                return Ignore()
        stage.events.append(f"{id} starts")
        return None

    def terminate(self, reason: Reason) -> None:
        self.stage.events.append(f"{self.id} ends")


@pytest.fixture
def stage() -> Stage:
    return Stage()


def start(policy: Policy, *specs: ChildSpec, name: str | None = None) -> Pid:
    return spawn(Supervisor, policy, specs, name=name)


def pids(sup: Pid) -> dict[str, Pid | None]:
    return {child.id: child.pid for child in which_children(sup)}


def end(node: Inline, pid: Pid | None, reason: Any) -> None:
    assert pid is not None
    if reason == "kill":
        exit(pid, "kill")
    else:
        cast(pid, ("stop", reason))
    node.run()


# Starting a supervisor


def test_children_start_in_order_and_stop_in_reverse_order(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a"), stage.spec("b"), stage.spec("c"))
    assert stage.take() == ["a starts", "b starts", "c starts"]
    sys.stop(sup, "shutdown")
    assert stage.take() == ["c ends", "b ends", "a ends"]


def test_child_that_fails_to_start_stops_those_before_it_and_fails_the_supervisor(node: Inline, stage: Stage) -> None:
    stage.plans = {"b": ["fail"]}
    with pytest.raises(StartFailed) as failed:
        start(Policy(), stage.spec("a"), stage.spec("b"), stage.spec("c"), name="sup")
    assert failed.value.reason == ("shutdown", ("failed_to_start_child", "b", "boom"))
    assert stage.take() == ["a starts", "b fails", "a ends"]
    assert whereis("sup") is None and whereis("sup.a") is None


def test_child_that_raises_in_init_fails_the_supervisor_with_the_exception(node: Inline, stage: Stage) -> None:
    stage.plans = {"a": ["raise"]}
    with pytest.raises(StartFailed) as failed:
        start(Policy(), stage.spec("a"))
    assert failed.value.reason == ("shutdown", ("failed_to_start_child", "a", ("error", "ValueError", "boom")))


@pytest.mark.parametrize("restart", ["permanent", "transient"])
def test_child_that_is_not_needed_keeps_its_place(node: Inline, stage: Stage, restart: Any) -> None:
    stage.plans = {"a": ["ignore"]}
    sup = start(Policy(), stage.spec("a", restart))
    assert pids(sup) == {"a": None}
    restart_child(sup, "a")
    assert stage.take() == ["a starts"]


def test_temporary_child_that_is_not_needed_is_forgotten(node: Inline, stage: Stage) -> None:
    stage.plans = {"a": ["ignore"]}
    assert pids(start(Policy(), stage.spec("a", "temporary"))) == {}


def test_supervisor_with_bad_specs_does_not_start(node: Inline, stage: Stage) -> None:
    with pytest.raises(StartFailed) as failed:
        start(Policy(), stage.spec("a"), stage.spec("a"))
    assert failed.value.reason == ("error", "BadSpec", "duplicate_child_name: 'a'")
    assert stage.take() == []


# Stopping


def test_child_that_does_not_stop_in_time_is_killed(node: Inline) -> None:
    silent = spawn(Echo)
    sup = start(Policy(), ChildSpec("deaf", (Sleeper, silent), shutdown=2.0))
    deaf = pids(sup)["deaf"]
    assert deaf is not None
    sys.stop(sup, "shutdown")
    assert node.reasons[deaf] == "killed"
    assert node.now() == 2.0


def test_child_is_waited_for_without_end_if_its_spec_says_so(node: Inline) -> None:
    silent = spawn(Echo)
    sup = start(Policy(), ChildSpec("deaf", (Sleeper, silent), shutdown="infinity"))
    deaf = pids(sup)["deaf"]
    assert deaf is not None
    exit(sup, "shutdown")
    node.advance(3600)
    assert is_alive(deaf) and is_alive(sup)
    cast(silent, ("answer", "go"))
    node.run()
    assert node.reasons[deaf] == "shutdown" and node.reasons[sup] == "shutdown"


def test_brutal_kill_does_not_ask(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a", shutdown="brutal_kill"), stage.spec("b"))
    killed = pids(sup)["a"]
    assert killed is not None
    sys.stop(sup, "shutdown")
    assert node.reasons[killed] == "killed"
    assert stage.take() == ["a starts", "b starts", "b ends"]


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_children_that_die_while_the_supervisor_stops_do_no_harm(
    node: Inline, stage: Stage, restart: Any, reason: Any
) -> None:
    """Their Downs wait in the mailbox behind the shutdown: nobody is restarted, nothing hangs."""
    sup = start(Policy(), *(stage.spec(id, restart) for id in "abc"))
    sys.suspend(sup)
    exit(sup, "shutdown")
    for pid in pids_inside(node, sup):
        end(node, pid, reason)
    stage.take()
    sys.resume(sup)
    node.run()
    assert node.reasons[sup] == "shutdown"
    assert not [event for event in stage.take() if event.endswith("starts")]


def pids_inside(node: Inline, sup: Pid) -> list[Pid]:
    return node.living(f"{sup.name}.")


def test_supervisor_whose_parent_ends_it_stops_its_children(node: Inline, stage: Stage) -> None:
    inner = Supervisor.child_spec(Policy(), [stage.spec("leaf")], id="inner", type="supervisor")
    outer = start(Policy(), inner, name="outer")
    leaf = whereis("outer.inner.leaf")
    assert leaf is not None
    sys.stop(outer, "shutdown")
    assert node.reasons[leaf] == "shutdown"
    assert stage.take() == ["leaf starts", "leaf ends"]


# start_child, terminate_child, restart_child, delete_child


def test_started_child_is_the_last_in_the_order(node: Inline, stage: Stage) -> None:
    sup = start(Policy("rest_for_one"), stage.spec("a"))
    pid = start_child(sup, stage.spec("b"))
    assert list(pids(sup).items())[1] == ("b", pid)


def test_child_of_a_present_id_is_refused(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a"))
    assert refusal(start_child, sup, stage.spec("a")) == ("already_started", pids(sup)["a"])
    terminate_child(sup, "a")
    assert refusal(start_child, sup, stage.spec("a")) == "already_present"


def test_terminated_child_is_not_restarted_until_it_is_asked_for(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a"))
    terminate_child(sup, "a")
    assert stage.take() == ["a starts", "a ends"]
    assert [child.state for child in which_children(sup)] == ["down"]
    assert restart_child(sup, "a") == pids(sup)["a"]


def test_terminate_twice_is_no_error(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a"))
    terminate_child(sup, "a")
    terminate_child(sup, "a")


def test_terminated_temporary_child_is_forgotten(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a", "temporary"))
    terminate_child(sup, "a")
    assert refusal(restart_child, sup, "a") == "not_found"


def test_running_child_is_neither_restarted_nor_deleted_by_a_call(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a"))
    assert refusal(restart_child, sup, "a") == "running"
    assert refusal(delete_child, sup, "a") == "running"


def test_deleted_child_is_forgotten(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a"))
    terminate_child(sup, "a")
    delete_child(sup, "a")
    assert pids(sup) == {}
    assert start_child(sup, stage.spec("a")) is not None


@pytest.mark.parametrize("function", [terminate_child, restart_child, delete_child, child_spec_of])
def test_unknown_child_is_not_found(node: Inline, function: Any) -> None:
    assert refusal(function, start(Policy()), "nobody") == "not_found"


def test_start_child_that_fails_saves_nothing(node: Inline, stage: Stage) -> None:
    stage.plans = {"a": ["fail"]}
    sup = start(Policy())
    assert refusal(start_child, sup, stage.spec("a")) == "boom"
    assert pids(sup) == {}


def test_restart_child_that_fails_keeps_the_spec(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a"))
    terminate_child(sup, "a")
    stage.plans = {"a": ["fail"]}
    assert refusal(restart_child, sup, "a") == "boom"
    assert pids(sup) == {"a": None}
    assert restart_child(sup, "a") is not None


def test_start_child_that_is_not_needed_answers_none(node: Inline, stage: Stage) -> None:
    stage.plans = {"a": ["ignore"], "b": ["ignore"]}
    sup = start(Policy())
    assert start_child(sup, stage.spec("a")) is None
    assert start_child(sup, stage.spec("b", "temporary")) is None
    assert pids(sup) == {"a": None}


def test_start_child_refuses_what_does_not_fit_the_policy(node: Inline, stage: Stage) -> None:
    sup = start(Policy())
    reason = refusal(start_child, sup, stage.spec("a", "transient", significant=True))
    assert reason[0] == "bad_combination"
    assert refusal(start_child, sup, "not a spec")[0] == "invalid_child_spec"


def test_child_spec_can_be_asked_for(node: Inline, stage: Stage) -> None:
    spec = stage.spec("a", "transient")
    assert child_spec_of(start(Policy(), spec), "a") == spec


def test_children_are_counted(node: Inline, stage: Stage) -> None:
    inner = Supervisor.child_spec(Policy(), id="inner", type="supervisor")
    sup = start(Policy(), stage.spec("a"), stage.spec("b"), inner)
    terminate_child(sup, "b")
    assert count_children(sup) == Counts(specs=3, active=2, supervisors=1, workers=2)


def test_arguments_of_a_temporary_child_are_not_kept_once_it_runs(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a", "temporary"), stage.spec("b"))
    assert child_spec_of(sup, "a").start == (Actor,)
    assert child_spec_of(sup, "b").start == (Actor, stage, "b")


def test_calls_to_a_dead_supervisor_are_noproc(node: Inline, stage: Stage) -> None:
    sup = start(Policy())
    sys.stop(sup)
    for ask in (which_children, count_children):
        with pytest.raises(NoProc):
            ask(sup)


def test_children_are_told_with_their_restarts_and_the_last_reason(node: Inline, stage: Stage) -> None:
    sup = start(Policy("one_for_all"), stage.spec("a"), stage.spec("b"))
    end(node, pids(sup)["a"], "boom")
    told = [(child.id, child.state, child.num_restarts, child.last_reason) for child in which_children(sup)]
    assert told == [("a", "running", 1, "boom"), ("b", "running", 1, "shutdown")]


def refusal(function: Any, *args: Any) -> Any:
    with pytest.raises(Refused) as refused:
        function(*args)
    return refused.value.reason


# Restarts


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_child_is_restarted_or_not_by_its_type_and_reason(
    node: Inline, stage: Stage, restart: Any, reason: Any
) -> None:
    sup = start(Policy(), stage.spec("a", restart))
    old = pids(sup)["a"]
    end(node, old, reason)
    assert old is not None and not is_alive(old)
    if restart == "permanent" or (restart == "transient" and reason in ("boom", "kill")):
        new = pids(sup)["a"]
        assert new is not None and new != old and is_alive(new)
    else:
        assert pids(sup) == ({} if restart == "temporary" else {"a": None})


@pytest.mark.parametrize(
    ("strategy", "restarted"), [("one_for_one", "b"), ("rest_for_one", "bc"), ("one_for_all", "abc")]
)
def test_strategy_restarts_whom_it_names_and_the_old_ones_are_dead(
    node: Inline, stage: Stage, strategy: Any, restarted: str
) -> None:
    sup = start(Policy(strategy), *(stage.spec(id) for id in "abc"))
    old = pids(sup)
    end(node, old["b"], "boom")
    new = pids(sup)
    assert {id for id in old if old[id] != new[id]} == set(restarted)
    for id in restarted:
        pid = old[id]
        assert pid is not None and not is_alive(pid)


def test_one_for_all_stops_in_reverse_order_and_starts_in_order(node: Inline, stage: Stage) -> None:
    sup = start(Policy("one_for_all"), *(stage.spec(id) for id in "abc"))
    stage.take()
    end(node, pids(sup)["b"], "kill")
    assert stage.take() == ["c ends", "a ends", "a starts", "b starts", "c starts"]


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_temporary_child_killed_by_its_siblings_restart_is_not_restarted(
    node: Inline, stage: Stage, strategy: Any
) -> None:
    sup = start(Policy(strategy), stage.spec("a"), stage.spec("temp", "temporary"))
    bystander = pids(sup)["temp"]
    assert bystander is not None
    end(node, pids(sup)["a"], "boom")
    assert not is_alive(bystander)
    assert list(pids(sup)) == ["a"] and is_alive(sup)


def test_too_many_restarts_within_the_period_end_the_supervisor_and_all_children(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a"), stage.spec("b"))
    bystander = pids(sup)["b"]
    assert bystander is not None
    for _ in range(3):
        end(node, pids(sup)["a"], "boom")
    assert is_alive(sup)
    end(node, pids(sup)["a"], "boom")
    assert node.reasons[sup] == "shutdown" and node.reasons[bystander] == "shutdown"


def test_restarts_outside_the_period_do_not_add_up(node: Inline, stage: Stage) -> None:
    sup = start(Policy(max_restarts=1), stage.spec("a"))
    for _ in range(10):
        end(node, pids(sup)["a"], "boom")
        node.advance(5.1)
    assert is_alive(sup)


def test_failing_restart_is_tried_again_until_it_works(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a"))
    stage.plans = {"a": ["fail", "fail"]}
    end(node, pids(sup)["a"], "boom")
    assert stage.take() == ["a starts", "a ends", "a fails", "a fails", "a starts"]
    assert pids(sup)["a"] is not None


@pytest.mark.parametrize("strategy", ["one_for_one", "rest_for_one", "one_for_all"])
def test_restart_that_keeps_failing_escalates(node: Inline, stage: Stage, strategy: Any) -> None:
    sup = start(Policy(strategy), stage.spec("a"), stage.spec("b"))
    stage.plans = {"a": ["fail"] * 100}
    end(node, pids(sup)["a"], "boom")
    assert node.reasons[sup] == "shutdown"
    assert stage.take().count("a fails") == 3


def test_child_restarted_in_this_round_is_stopped_again_if_a_later_one_fails(node: Inline, stage: Stage) -> None:
    sup = start(Policy("one_for_all"), stage.spec("a"), stage.spec("b"))
    stage.take()
    stage.plans = {"b": ["fail"]}
    end(node, pids(sup)["a"], "boom")
    assert stage.take() == ["a ends", "b ends", "a starts", "b fails", "a ends", "a starts", "b starts"]


def test_rest_for_one_leaves_alone_what_comes_before_the_one_that_fails(node: Inline, stage: Stage) -> None:
    sup = start(Policy("rest_for_one"), stage.spec("a"), stage.spec("b"), stage.spec("c"))
    stage.take()
    stage.plans = {"c": ["fail"]}
    end(node, pids(sup)["b"], "boom")
    assert stage.take() == ["b ends", "c ends", "b starts", "c fails", "c starts"]


def test_child_that_is_no_longer_needed_at_its_restart_stays_down(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a"))
    stage.plans = {"a": ["ignore"]}
    end(node, pids(sup)["a"], "boom")
    assert pids(sup) == {"a": None} and is_alive(sup)


@pytest.mark.parametrize("strategy", ["one_for_one", "rest_for_one", "one_for_all"])
def test_supervisor_answers_between_two_failing_restarts(node: Inline, stage: Stage, strategy: Any) -> None:
    sup = hanging(stage, strategy)
    assert refusal(restart_child, sup, "a") == "restarting"
    assert refusal(delete_child, sup, "a") == "restarting"
    assert refusal(start_child, sup, stage.spec("a")) == ("already_started", None)


@pytest.mark.parametrize("strategy", ["one_for_one", "rest_for_one", "one_for_all"])
def test_child_that_does_not_come_back_can_be_terminated(node: Inline, stage: Stage, strategy: Any) -> None:
    sup = hanging(stage, strategy)
    terminate_child(sup, "a")
    node.run()
    assert pids(sup)["a"] is None and is_alive(sup)
    stage.plans = {}
    assert restart_child(sup, "a") is not None


@pytest.mark.parametrize("strategy", ["one_for_one", "rest_for_one", "one_for_all"])
def test_supervisor_can_be_stopped_between_two_failing_restarts(node: Inline, stage: Stage, strategy: Any) -> None:
    sup = hanging(stage, strategy)
    sys.stop(sup, "shutdown")
    assert node.reasons[sup] == "shutdown"


def test_child_that_does_not_come_back_is_not_tried_on_its_own_if_it_goes_down_with_another(
    node: Inline, stage: Stage
) -> None:
    sup = start(Policy("rest_for_one"), stage.spec("a"), stage.spec("b"))
    old = pids(sup)
    sys.suspend(sup)
    end(node, old["b"], "boom")
    end(node, old["a"], "boom")
    stage.plans = {"b": ["fail"], "a": ["fail"]}
    stage.take()
    sys.resume(sup)
    node.run()
    assert stage.take() == ["b fails", "a fails", "a starts", "b starts"]


def test_significant_child_that_is_to_be_tried_again_has_not_ended(node: Inline, stage: Stage) -> None:
    policy = Policy(auto_shutdown="all_significant")
    sup = start(policy, *(stage.spec(id, "transient", significant=True) for id in "ab"))
    old = pids(sup)
    sys.suspend(sup)
    end(node, old["a"], "boom")
    end(node, old["b"], "normal")
    stage.plans = {"a": ["fail"]}
    sys.resume(sup)
    node.run()
    assert pids(sup)["a"] is not None


def hanging(stage: Stage, strategy: Any) -> Pid:
    """A supervisor in the midst of restarts that fail without an end."""
    sup = start(Policy(strategy, max_restarts=10**6), stage.spec("a"))
    stage.plans = {"a": ["fail"] * 100_000}
    pid = pids(sup)["a"]
    assert pid is not None
    cast(pid, ("stop", "boom"))
    while "a fails" not in stage.events:
        which_children(sup)
    return sup


# Significant children


@pytest.mark.parametrize("restart", ["transient", "temporary"])
def test_any_significant_child_that_ends_takes_the_supervisor_along(node: Inline, stage: Stage, restart: Any) -> None:
    policy = Policy(auto_shutdown="any_significant")
    sup = start(policy, stage.spec("a", restart, significant=True), stage.spec("b"))
    end(node, pids(sup)["a"], "normal")
    assert node.reasons[sup] == "shutdown"
    assert stage.take() == ["a starts", "b starts", "a ends", "b ends"]


def test_all_significant_children_must_end(node: Inline, stage: Stage) -> None:
    policy = Policy(auto_shutdown="all_significant")
    sup = start(policy, *(stage.spec(id, "transient", significant=True) for id in "ab"), stage.spec("c"))
    end(node, pids(sup)["a"], "normal")
    assert is_alive(sup)
    end(node, pids(sup)["b"], "shutdown")
    assert node.reasons[sup] == "shutdown"


def test_significant_child_that_is_terminated_by_a_call_does_not_end_the_supervisor(node: Inline, stage: Stage) -> None:
    policy = Policy(auto_shutdown="any_significant")
    sup = start(policy, stage.spec("a", "transient", significant=True))
    terminate_child(sup, "a")
    node.run()
    assert is_alive(sup)


def test_significant_bystander_of_a_restart_does_not_end_the_supervisor(node: Inline, stage: Stage) -> None:
    policy = Policy("one_for_all", auto_shutdown="any_significant")
    sup = start(policy, stage.spec("a"), stage.spec("b", "transient", significant=True))
    end(node, pids(sup)["a"], "boom")
    assert is_alive(sup) and all(pids(sup).values())


def test_auto_shutdown_of_an_inner_supervisor_is_a_normal_end_to_the_outer(node: Inline, stage: Stage) -> None:
    inner = Supervisor.child_spec(
        Policy(auto_shutdown="any_significant"),
        [stage.spec("leaf", "transient", significant=True)],
        id="inner",
        type="supervisor",
        restart="transient",
    )
    outer = start(Policy(), inner, name="outer")
    end(node, whereis("outer.inner.leaf"), "normal")
    assert pids(outer) == {"inner": None} and is_alive(outer)


# Trees, and the death of a supervisor


def test_escalation_restarts_the_inner_supervisor_with_fresh_children(node: Inline, stage: Stage) -> None:
    inner = Supervisor.child_spec(Policy(max_restarts=0), [stage.spec("leaf")], id="inner", type="supervisor")
    outer = start(Policy(), inner, name="outer")
    before = whereis("outer.inner")
    end(node, whereis("outer.inner.leaf"), "boom")
    assert whereis("outer.inner") not in (None, before) and is_alive(outer)
    assert stage.take() == ["leaf starts", "leaf ends", "leaf starts"]


def test_killed_supervisor_comes_back_and_takes_over_its_living_children(node: Inline, stage: Stage) -> None:
    inner = Supervisor.child_spec(Policy(), [stage.spec("a"), stage.spec("b")], id="inner", type="supervisor")
    start(Policy(), inner, name="outer")
    sup, a, b = whereis("outer.inner"), whereis("outer.inner.a"), whereis("outer.inner.b")
    assert sup is not None and b is not None
    exit(b, "kill")
    exit(sup, "kill")
    node.run()
    assert whereis("outer.inner") == Pid("outer.inner", 2)
    assert whereis("outer.inner.a") == a  # the same process
    assert whereis("outer.inner.b") == Pid("outer.inner.b", 2)  # it was dead, and is started
    assert stage.take() == ["a starts", "b starts", "b starts"]


def test_child_that_was_taken_over_is_watched_and_stopped_like_any_other(node: Inline, stage: Stage) -> None:
    exit(start(Policy(), stage.spec("a"), name="sup"), "kill")
    sup = start(Policy(), stage.spec("a"), name="sup")
    stage.take()
    end(node, pids(sup)["a"], "boom")
    assert stage.take() == ["a ends", "a starts"]
    exit(sup, "kill")
    sys.stop(start(Policy(), stage.spec("a"), name="sup"), "shutdown")
    assert stage.take() == ["a ends"]  # in order: the new supervisor is its parent


def test_children_that_were_added_later_end_with_their_supervisors_life(node: Inline, stage: Stage) -> None:
    sup = start(Policy(), stage.spec("a"), name="sup")
    added = start_child(sup, stage.spec("later"))
    assert added is not None
    exit(sup, "kill")
    assert is_alive(added)
    assert list(pids(start(Policy(), stage.spec("a"), name="sup"))) == ["a"]
    assert node.reasons[added] == "killed"


def test_grandchildren_of_a_killed_supervisor_are_taken_over_level_by_level(node: Inline, stage: Stage) -> None:
    def root() -> Pid:
        inner = Supervisor.child_spec(Policy(), [stage.spec("leaf")], id="inner", type="supervisor")
        return start(Policy(), inner, name="root")

    old = root()
    leaf, inner = whereis("root.inner.leaf"), whereis("root.inner")
    assert inner is not None
    exit(inner, "kill")
    exit(old, "kill")
    root()
    assert whereis("root.inner.leaf") == leaf
    assert stage.take() == ["leaf starts"]


def test_killed_supervisor_that_is_given_up_leaves_no_orphans(node: Inline, stage: Stage) -> None:
    inner = Supervisor.child_spec(Policy(), [stage.spec("leaf")], id="inner", type="supervisor")
    outer = start(Policy(max_restarts=0), inner, name="outer")
    leaf, sup = whereis("outer.inner.leaf"), whereis("outer.inner")
    assert leaf is not None and sup is not None
    exit(sup, "kill")
    node.run()
    assert node.reasons[outer] == "shutdown" and node.reasons[leaf] == "killed"


def test_supervisor_that_does_not_stop_in_time_leaves_no_orphans(node: Inline, stage: Stage) -> None:
    silent = spawn(Echo)
    deaf = ChildSpec("deaf", (Sleeper, silent), shutdown="infinity")
    inner = Supervisor.child_spec(Policy(), [stage.spec("leaf"), deaf], id="inner", type="supervisor", shutdown=1.0)
    outer = start(Policy(), inner, name="outer")
    sys.stop(outer, "shutdown")
    assert node.living("outer") == []


def test_unexpected_message_is_survived(node: Inline, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    sup = start(Policy(), stage.spec("a"))
    send(sup, "surprise")
    assert pids(sup)["a"] is not None
    assert "surprise" in caplog.text


def test_many_children_stop_in_linear_time(node: Inline) -> None:
    def seconds_for(number: int) -> float:
        sup = start(Policy(), *(ChildSpec(f"c{index}", (Echo,)) for index in range(number)))
        begin = time.perf_counter()
        sys.stop(sup, "shutdown")
        return time.perf_counter() - begin

    assert seconds_for(2000) / seconds_for(200) < 50


# Dynamic supervisors


def dynamic(policy: Policy | None = None, max_children: int | None = None, name: str | None = None) -> Pid:
    return spawn(DynamicSupervisor, policy, max_children, name=name)


def test_dynamic_supervisor_starts_as_many_of_one_spec_as_are_asked_for(node: Inline, stage: Stage) -> None:
    sup = dynamic()
    started = {dynamic_supervisor.start_child(sup, stage.spec("a")) for _ in range(3)}
    assert len(started) == 3
    assert dynamic_supervisor.count_children(sup) == Counts(3, 3, 0, 3)
    assert {child.pid for child in dynamic_supervisor.which_children(sup)} == started


def test_dynamic_supervisor_refuses_one_child_too_many(node: Inline, stage: Stage) -> None:
    sup = dynamic(max_children=2)
    first = dynamic_supervisor.start_child(sup, stage.spec("a"))
    dynamic_supervisor.start_child(sup, stage.spec("a"))
    assert refusal(dynamic_supervisor.start_child, sup, stage.spec("a")) == "max_children"
    assert first is not None
    dynamic_supervisor.terminate_child(sup, first)
    assert dynamic_supervisor.start_child(sup, stage.spec("a")) is not None


def test_child_that_is_being_restarted_counts_as_one_of_max_children(node: Inline, stage: Stage) -> None:
    sup = dynamic(Policy(max_restarts=10**6), max_children=1)
    pid = dynamic_supervisor.start_child(sup, stage.spec("a"))
    stage.plans = {"a": ["fail"] * 100_000}
    assert pid is not None
    cast(pid, ("stop", "boom"))
    while "a fails" not in stage.events:
        dynamic_supervisor.which_children(sup)
    assert refusal(dynamic_supervisor.start_child, sup, stage.spec("b")) == "max_children"
    assert [child.state for child in dynamic_supervisor.which_children(sup)] == ["restarting"]


@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_dynamic_child_is_restarted_by_its_type_and_reason(
    node: Inline, stage: Stage, restart: Any, reason: Any
) -> None:
    sup = dynamic()
    end(node, dynamic_supervisor.start_child(sup, stage.spec("a", restart)), reason)
    is_restarted = restart == "permanent" or (restart == "transient" and reason in ("boom", "kill"))
    assert dynamic_supervisor.count_children(sup).active == int(is_restarted)
    assert dynamic_supervisor.count_children(sup).specs == int(is_restarted)


@pytest.mark.parametrize(
    ("plan", "reason"), [("fail", "boom"), ("raise", ("error", "ValueError", "boom")), ("exit", ("shutdown", "x"))]
)
def test_dynamic_child_that_fails_to_start_is_refused_with_the_reason(
    node: Inline, stage: Stage, plan: str, reason: Any
) -> None:
    sup = dynamic()
    stage.plans = {"a": [plan]}
    assert refusal(dynamic_supervisor.start_child, sup, stage.spec("a")) == reason
    assert dynamic_supervisor.count_children(sup).specs == 0


def test_dynamic_child_that_is_not_needed_is_forgotten(node: Inline, stage: Stage) -> None:
    sup = dynamic()
    stage.plans = {"a": ["ignore"], "b": ["start", "ignore"]}
    assert dynamic_supervisor.start_child(sup, stage.spec("a")) is None
    end(node, dynamic_supervisor.start_child(sup, stage.spec("b")), "boom")
    assert dynamic_supervisor.count_children(sup).specs == 0


def test_dynamic_child_whose_restart_fails_is_tried_again_until_it_works(node: Inline, stage: Stage) -> None:
    sup = dynamic(Policy(max_restarts=5))
    stage.plans = {"a": ["start", "fail", "raise", "exit", "start"]}
    first = dynamic_supervisor.start_child(sup, stage.spec("a"))
    end(node, first, "boom")
    (child,) = dynamic_supervisor.which_children(sup)
    assert (child.state, child.pid != first) == ("running", True)


def test_dynamic_supervisor_gives_up_after_too_many_restarts(node: Inline, stage: Stage) -> None:
    sup = dynamic(Policy(max_restarts=1))
    other = dynamic_supervisor.start_child(sup, stage.spec("b"))
    pid = dynamic_supervisor.start_child(sup, stage.spec("a"))
    stage.plans = {"a": ["fail"] * 10}
    end(node, pid, "boom")
    assert other is not None
    assert node.reasons[sup] == "shutdown" and node.reasons[other] == "shutdown"


def test_dynamic_children_shut_down_side_by_side(node: Inline) -> None:
    sup = dynamic()
    silent = spawn(Echo)
    for _ in range(5):
        dynamic_supervisor.start_child(sup, ChildSpec("deaf", (Sleeper, silent), shutdown=2.0))
    sys.stop(sup, "shutdown")
    assert node.living(sup.name) == []


def test_dynamic_terminate_of_a_stranger_is_not_found(node: Inline) -> None:
    assert refusal(dynamic_supervisor.terminate_child, dynamic(), Pid("nobody", 1)) == "not_found"


@pytest.mark.parametrize(
    ("policy", "max_children", "error"),
    [(Policy("one_for_all"), None, "invalid_strategy"), (None, -1, "invalid_max_children")],
)
def test_dynamic_supervisor_refuses_bad_options(
    node: Inline, policy: Policy | None, max_children: int | None, error: str
) -> None:
    with pytest.raises(StartFailed) as failed:
        dynamic(policy, max_children)
    assert isinstance(failed.value.reason, tuple) and failed.value.reason[1] == BadSpec.__name__
    assert error in str(failed.value.reason[2])


def test_children_of_a_killed_dynamic_supervisor_are_not_restored(node: Inline, stage: Stage) -> None:
    sup = dynamic(name="dynamic")
    orphan = dynamic_supervisor.start_child(sup, stage.spec("a"))
    assert orphan is not None
    exit(sup, "kill")
    again = dynamic(name="dynamic")
    assert node.reasons[orphan] == "killed"
    assert dynamic_supervisor.count_children(again).specs == 0


def test_crashing_child_is_seen_with_its_exception_as_reason(node: Inline) -> None:
    sup = start(Policy(), ChildSpec("a", (Echo,)))
    pid = pids(sup)["a"]
    assert pid is not None
    cast(pid, Crash("boom"))
    node.run()
    assert which_children(sup)[0].last_reason == ("error", "ValueError", "boom")
