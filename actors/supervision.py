"""Supervision: which children a death restarts, which it takes along, when it is too much. No process, no clock.

The words and the rules are those of Erlang's `supervisor`, so that whoever knows one knows the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias, get_args

from actors.birth import NO_RESOURCES, Resources
from actors.exits import Reason, is_abnormal

RestartType = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]
ChildType = Literal["worker", "supervisor"]
Shutdown: TypeAlias = float | Literal["brutal_kill", "infinity"]


class BadSpec(ValueError):
    """A child spec or a policy that cannot be meant; `error` names the field, as Erlang names it."""

    def __init__(self, error: str, value: object) -> None:
        super().__init__(f"{error}: {value!r}")
        self.error = error


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """How a supervisor starts, restarts and stops one child. `start` is a GenServer, or its path, and its arguments."""

    id: str
    start: tuple[Any, ...]
    restart: RestartType = "permanent"
    shutdown: Shutdown | None = None  # None: 5 seconds for a worker, infinity for a supervisor
    type: ChildType = "worker"
    significant: bool = False
    resources: Resources = NO_RESOURCES

    def __post_init__(self) -> None:
        _require("invalid_child_id", self.id, isinstance(self.id, str) and self.id != "" and "/" not in self.id)
        _require("invalid_start", self.start, _is_start(self.start))
        _require("invalid_restart_type", self.restart, self.restart in get_args(RestartType))
        _require("invalid_child_type", self.type, self.type in get_args(ChildType))
        _require("invalid_shutdown", self.shutdown, _is_shutdown(self.shutdown))
        _require("invalid_significant", self.significant, isinstance(self.significant, bool))
        _require("invalid_resources", self.resources, isinstance(self.resources, Resources))
        # Its end is meant to end the supervisor, and a permanent child has no end.
        _require(
            "bad_combination", (self.restart, "significant"), not (self.significant and self.restart == "permanent")
        )

    @property
    def patience(self) -> Shutdown:
        """How long its end is waited for, before it is killed."""
        if self.shutdown is not None:
            return self.shutdown
        return 5.0 if self.type == "worker" else "infinity"


@dataclass(frozen=True, slots=True)
class Policy:
    """How a supervisor treats its children as a whole."""

    strategy: Strategy = "one_for_one"
    max_restarts: int = 3
    max_seconds: float = 5.0
    auto_shutdown: AutoShutdown = "never"

    def __post_init__(self) -> None:
        _require("invalid_strategy", self.strategy, self.strategy in get_args(Strategy))
        _require("invalid_intensity", self.max_restarts, _is_count(self.max_restarts))
        _require("invalid_period", self.max_seconds, _is_number(self.max_seconds) and self.max_seconds > 0)
        _require("invalid_auto_shutdown", self.auto_shutdown, self.auto_shutdown in get_args(AutoShutdown))


def check_specs(policy: Policy, specs: Sequence[ChildSpec]) -> None:
    """What only shows when specs and policy are seen together."""
    seen: set[str] = set()
    for spec in specs:
        _require("invalid_child_spec", spec, isinstance(spec, ChildSpec))
        _require("duplicate_child_name", spec.id, spec.id not in seen)
        _require("bad_combination", (spec.id, "significant"), not spec.significant or policy.auto_shutdown != "never")
        seen.add(spec.id)


@dataclass(frozen=True, slots=True)
class RestartWindow:
    """The restarts of the last seconds. One more than `max_restarts` in it, and the supervisor gives up."""

    max_restarts: int = 3
    max_seconds: float = 5.0
    times: tuple[float, ...] = ()

    def record(self, now: float) -> RestartWindow:
        recent = tuple(time for time in self.times if now - time <= self.max_seconds)
        return replace(self, times=(*recent, now))

    @property
    def is_exceeded(self) -> bool:
        return len(self.times) > self.max_restarts


class Member(Protocol):
    """What a decision must know of a child."""

    @property
    def spec(self) -> ChildSpec: ...
    @property
    def is_down(self) -> bool: ...  # neither running, nor to be tried again


@dataclass(frozen=True, slots=True)
class Restart:
    """Stop these, then start those, in the order given. A temporary child may be among the first, never the second."""

    stop: tuple[str, ...]
    start: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Retire:
    """It has ended as it should: leave it down, and forget it if it is temporary."""


@dataclass(frozen=True, slots=True)
class ShutDown:
    """Its end is the end of the supervisor."""


Decision: TypeAlias = Restart | Retire | ShutDown


def decide(policy: Policy, children: Sequence[Member], dead: str, reason: Reason) -> Decision:
    """What the death of one child means for all of them. The children are given in their start order."""
    spec = next(child.spec for child in children if child.spec.id == dead)
    if spec.restart == "permanent" or (spec.restart == "transient" and is_abnormal(reason)):
        return restart_of(policy, children, dead)
    return ShutDown() if _ends_supervisor(policy, children, spec) else Retire()


def restart_of(policy: Policy, children: Sequence[Member], dead: str) -> Restart:
    """Who goes down and comes up with a child that is to be restarted."""
    ids = [child.spec.id for child in children]
    match policy.strategy:
        case "one_for_one":
            group = [child for child in children if child.spec.id == dead]
        case "rest_for_one":
            group = list(children[ids.index(dead) :])
        case "one_for_all":
            group = list(children)
    return Restart(
        stop=tuple(child.spec.id for child in reversed(group) if not child.is_down and child.spec.id != dead),
        start=tuple(child.spec.id for child in group if child.spec.restart != "temporary"),
    )


def _ends_supervisor(policy: Policy, children: Sequence[Member], spec: ChildSpec) -> bool:
    if not spec.significant or policy.auto_shutdown == "never":
        return False
    others = (child for child in children if child.spec.significant and child.spec.id != spec.id)
    return policy.auto_shutdown == "any_significant" or all(child.is_down for child in others)


def _require(error: str, value: object, is_met: bool) -> None:
    if not is_met:
        raise BadSpec(error, value)


def _is_start(start: object) -> bool:
    return isinstance(start, tuple) and len(start) > 0 and (isinstance(start[0], type) or ":" in str(start[0]))


def _is_shutdown(shutdown: object) -> bool:
    return shutdown in (None, "brutal_kill", "infinity") or (_is_number(shutdown) and float(str(shutdown)) >= 0)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
