"""The pure half of supervision: specs, the restart window, and what a death means."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.birth import Resources
from actors.supervision import (
    BadSpec,
    ChildSpec,
    Policy,
    Restart,
    RestartWindow,
    Retire,
    ShutDown,
    check_specs,
    decide,
    restart_of,
)

START = ("tests.servers:Echo",)


@dataclass(frozen=True, slots=True)
class Member:
    spec: ChildSpec
    is_down: bool = False


def children(*restarts: Any, significant: str = "") -> list[Member]:
    """Children a, b, c... of the restart types given."""
    ids = "abcdefgh"
    return [
        Member(ChildSpec(id, START, restart, significant=id in significant))
        for id, restart in zip(ids, restarts, strict=False)
    ]


# Specs


def test_spec_has_otps_defaults() -> None:
    spec = ChildSpec("a", START)
    assert (spec.restart, spec.type, spec.significant, spec.patience) == ("permanent", "worker", False, 5.0)
    assert ChildSpec("a", START, type="supervisor").patience == "infinity"


def test_every_combination_of_good_fields_is_a_spec() -> None:
    restarts: Any = ["permanent", "transient", "temporary"]
    shutdowns: Any = [None, 0, 0.5, 5, "brutal_kill", "infinity"]
    types: Any = ["worker", "supervisor"]
    starts: list[Any] = [START, (ChildSpec, 1, 2), ("a:B", None)]
    combinations = list(product(starts, restarts, shutdowns, types, [True, False], [Resources(), Resources(1, 1)]))
    good = [
        ChildSpec("a", start, restart, shutdown, type, significant, resources)
        for start, restart, shutdown, type, significant, resources in combinations
        if not (significant and restart == "permanent")
    ]
    assert len(good) == len(combinations) * 5 // 6


@pytest.mark.parametrize(
    ("error", "field", "values"),
    [
        ("invalid_child_id", "id", ["", 5, None, "a/1"]),
        ("invalid_start", "start", [(), "a:B", None, ("no_colon",), (5,)]),
        ("invalid_restart_type", "restart", ["always", None, True]),
        ("invalid_shutdown", "shutdown", [-1, -0.1, "never", True]),
        ("invalid_child_type", "type", ["boss", None]),
        ("invalid_significant", "significant", [None, 1, "yes"]),
        ("invalid_resources", "resources", [None, 1]),
    ],
)
def test_every_bad_field_of_a_spec_has_its_own_error(error: str, field: str, values: list[Any]) -> None:
    good: dict[str, Any] = {"id": "a", "start": START}
    for value in values:
        with pytest.raises(BadSpec) as bad:
            ChildSpec(**{**good, field: value})
        assert bad.value.error == error
        assert repr(value) in str(bad.value)


@pytest.mark.parametrize("missing", ["id", "start"])
def test_missing_id_or_start_is_named_in_the_error(missing: str) -> None:
    fields: dict[str, Any] = {"id": "a", "start": START}
    del fields[missing]
    with pytest.raises(TypeError, match=missing):
        ChildSpec(**fields)


@pytest.mark.parametrize(
    ("error", "field", "values"),
    [
        ("invalid_strategy", "strategy", ["one_for_none", None]),
        ("invalid_intensity", "max_restarts", [-1, 1.5, None, "infinity", True]),
        ("invalid_period", "max_seconds", [0, -1, None, "long"]),
        ("invalid_auto_shutdown", "auto_shutdown", [True, "some"]),
    ],
)
def test_every_bad_field_of_a_policy_has_its_own_error(error: str, field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(BadSpec) as bad:
            Policy(**{field: value})
        assert bad.value.error == error


def test_default_policy_is_elixirs() -> None:
    policy = Policy()
    assert (policy.strategy, policy.max_restarts, policy.max_seconds) == ("one_for_one", 3, 5.0)


def test_permanent_child_cannot_be_significant() -> None:
    with pytest.raises(BadSpec) as bad:
        ChildSpec("a", START, significant=True)
    assert bad.value.error == "bad_combination"


def test_significant_child_needs_an_auto_shutdown() -> None:
    specs = [ChildSpec("a", START, "transient", significant=True)]
    check_specs(Policy(auto_shutdown="any_significant"), specs)
    with pytest.raises(BadSpec) as bad:
        check_specs(Policy(), specs)
    assert bad.value.error == "bad_combination"


def test_two_children_of_one_id_are_refused() -> None:
    with pytest.raises(BadSpec) as bad:
        check_specs(Policy(), [ChildSpec("a", START), ChildSpec("b", START), ChildSpec("a", START)])
    assert bad.value.error == "duplicate_child_name"


def test_what_is_not_a_spec_is_refused() -> None:
    not_a_spec: Any = ("a", START)
    with pytest.raises(BadSpec) as bad:
        check_specs(Policy(), [not_a_spec])
    assert bad.value.error == "invalid_child_spec"


# The window


def recorded(window: RestartWindow, *times: float) -> RestartWindow:
    for time in times:
        window = window.record(time)
    return window


def test_fourth_restart_within_five_seconds_is_too_much() -> None:
    assert not recorded(RestartWindow(), 0, 1, 2).is_exceeded
    assert recorded(RestartWindow(), 0, 1, 2, 3).is_exceeded


def test_restarts_outside_the_period_are_forgotten() -> None:
    assert not recorded(RestartWindow(), 0, 1, 2, 5.1).is_exceeded
    assert recorded(RestartWindow(), 0, 1, 2, 5.0).is_exceeded


def test_intensity_zero_allows_no_restart() -> None:
    assert recorded(RestartWindow(max_restarts=0), 0).is_exceeded


@given(st.lists(st.floats(0, 100), max_size=30).map(sorted), st.integers(0, 5), st.floats(0.1, 20))
def test_window_is_exceeded_exactly_if_too_many_lie_in_the_last_period(
    times: list[float], max_restarts: int, seconds: float
) -> None:
    window = recorded(RestartWindow(max_restarts, seconds), *times)
    in_period = [time for time in times if times[-1] - time <= seconds]
    assert window.is_exceeded == (len(in_period) > max_restarts)
    assert len(window.times) == len(in_period)


# What a death means


@pytest.mark.parametrize("reason", ["normal", "shutdown", ("shutdown", "x"), ("error", "E", "m"), "killed", "boom"])
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_restart_type_and_reason_decide_over_a_restart(restart: Any, reason: Any) -> None:
    is_abnormal = reason in ("killed", "boom", ("error", "E", "m"))
    expected = restart == "permanent" or (restart == "transient" and is_abnormal)
    decision = decide(Policy(), children(restart), "a", reason)
    assert decision == (Restart((), ("a",)) if expected else Retire())


@pytest.mark.parametrize(
    ("strategy", "stop", "start"),
    [
        ("one_for_one", (), ("b",)),
        ("rest_for_one", ("d", "c"), ("b", "c", "d")),
        ("one_for_all", ("d", "c", "a"), ("a", "b", "c", "d")),
    ],
)
def test_strategy_says_who_goes_along_in_reverse_order(strategy: Any, stop: Any, start: Any) -> None:
    decision = decide(Policy(strategy), children(*["permanent"] * 4), "b", "boom")
    assert decision == Restart(stop, start)


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_temporary_bystander_is_stopped_and_not_started_again(strategy: Any) -> None:
    decision = decide(Policy(strategy), children("permanent", "temporary", "transient"), "a", "boom")
    assert decision == Restart(("c", "b"), ("a", "c"))


def test_child_that_is_down_is_started_with_the_others_but_not_stopped() -> None:
    group = children("permanent", "transient")
    group[1] = Member(group[1].spec, is_down=True)
    assert restart_of(Policy("one_for_all"), group, "a") == Restart((), ("a", "b"))


@pytest.mark.parametrize("restart", ["transient", "temporary"])
def test_end_of_any_significant_child_ends_the_supervisor(restart: Any) -> None:
    policy = Policy(auto_shutdown="any_significant")
    group = children(restart, "permanent", restart, significant="ac")
    assert decide(policy, group, "a", "normal") == ShutDown()


def test_end_of_an_insignificant_child_does_not() -> None:
    policy = Policy(auto_shutdown="any_significant")
    assert decide(policy, children("transient", "transient", significant="a"), "b", "normal") == Retire()


def test_only_the_end_of_the_last_significant_child_ends_the_supervisor_if_all_must_end() -> None:
    policy = Policy(auto_shutdown="all_significant")
    group = children("transient", "transient", "permanent", significant="ab")
    assert decide(policy, group, "a", "normal") == Retire()
    group[0] = Member(group[0].spec, is_down=True)
    assert decide(policy, group, "b", "normal") == ShutDown()


def test_significant_child_that_is_restarted_has_not_ended() -> None:
    policy = Policy(auto_shutdown="any_significant")
    assert decide(policy, children("transient", significant="a"), "a", "boom") == Restart((), ("a",))


def test_crash_of_a_significant_temporary_child_is_its_end() -> None:
    policy = Policy(auto_shutdown="any_significant")
    assert decide(policy, children("temporary", significant="a"), "a", "boom") == ShutDown()
