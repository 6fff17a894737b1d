"""Sys: looking into a living process. Client functions first; below them what the loop does when it is asked.

A server need not know of this: its loop answers, between two messages. What it shows as its state is `format_state`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actors.envelope import Envelope, System
from actors.exits import NORMAL, Died, Reason, Timeout
from actors.node import CALL_SECONDS, address, here
from actors.pid import Server

if TYPE_CHECKING:
    from actors.loop import Loop


@dataclass(frozen=True, slots=True)
class Statistics:
    seconds_alive: float
    num_messages: int  # handled, all kinds
    num_replies: int
    num_postponed: int  # arrived while suspended
    is_suspended: bool


@dataclass(frozen=True, slots=True)
class Traced:
    """One thing that happened: "in" with an envelope, or "reply" with a value."""

    at: float
    event: str
    content: object


def get_state(server: Server, timeout: float | None = CALL_SECONDS) -> Any:
    return _ask(server, _GetState(), timeout)


def replace_state(server: Server, change: Callable[[Any], Any], timeout: float | None = CALL_SECONDS) -> Any:
    """Give the server's attributes, as a dict, to `change`, and put what it returns in their place."""
    answer = _ask(server, _ReplaceState(change), timeout)
    if isinstance(answer, _Failed):
        raise ValueError(f"replace_state of {server}: {answer.why}")
    return answer


def suspend(server: Server, timeout: float | None = CALL_SECONDS) -> None:
    """Let messages wait, until `resume`; only the questions of this file are answered."""
    _ask(server, _Suspend(True), timeout)


def resume(server: Server, timeout: float | None = CALL_SECONDS) -> None:
    _ask(server, _Suspend(False), timeout)


def statistics(server: Server, timeout: float | None = CALL_SECONDS) -> Statistics:
    answer = _ask(server, _GetStatistics(), timeout)
    assert isinstance(answer, Statistics)
    return answer


def trace(server: Server, keep: int = 100, timeout: float | None = CALL_SECONDS) -> None:
    """Keep the last events from now on; 0 ends it."""
    _ask(server, _Trace(keep), timeout)


def traced(server: Server, timeout: float | None = CALL_SECONDS) -> list[Traced]:
    """The events kept so far."""
    answer: list[Traced] = _ask(server, _GetTrace(), timeout)
    return answer


def stop(server: Server, reason: Reason = NORMAL, timeout: float | None = None) -> None:
    """End a server in order, `terminate` included, and wait for it. Raises Timeout if it still lives then."""
    pid = address(server)
    try:
        _ask(pid, _Terminate(reason), timeout)
    except Died as death:
        if death.reason != reason:
            raise
    if here().join(pid, timeout) is None:
        raise Timeout(server, "timeout")


class Tally:
    """What one loop has seen: counts always, events on request."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.num_messages = 0
        self.num_replies = 0
        self.born = now()
        self.now = now
        self.events: deque[Traced] | None = None

    def note_in(self, envelope: Envelope) -> None:
        self.num_messages += 1
        self._keep("in", envelope)

    def note_reply(self, value: object) -> None:
        self.num_replies += 1
        self._keep("reply", value)

    def _keep(self, event: str, content: object) -> None:
        if self.events is not None:
            self.events.append(Traced(self.now(), event, content))


@dataclass(frozen=True, slots=True)
class _GetState: ...


@dataclass(frozen=True, slots=True)
class _ReplaceState:
    change: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Suspend:
    is_suspended: bool


@dataclass(frozen=True, slots=True)
class _GetStatistics: ...


@dataclass(frozen=True, slots=True)
class _Trace:
    keep: int


@dataclass(frozen=True, slots=True)
class _GetTrace: ...


@dataclass(frozen=True, slots=True)
class _Terminate:
    reason: Reason


@dataclass(frozen=True, slots=True)
class _Failed:
    why: str


def obey(command: object, loop: Loop) -> object:
    """The loop's half: do what was asked, and give the answer."""
    match command:
        case _GetState():
            return _state(loop)
        case _ReplaceState(change):
            return _replace(loop, change)
        case _Suspend(is_suspended):
            loop.is_suspended = is_suspended
        case _GetStatistics():
            return _statistics(loop)
        case _Trace(keep):
            loop.tally.events = deque(maxlen=keep) if keep else None
        case _GetTrace():
            return list(loop.tally.events or ())
        case _Terminate(reason):
            loop.end(reason)
    return None


def _state(loop: Loop) -> object:
    assert loop.server is not None
    return loop.server.format_state()


def _replace(loop: Loop, change: Callable[[Any], Any]) -> object:
    # A change that fails must leave the server as it was: it is the visitor's mistake, not the server's.
    try:
        state = dict(change(dict(vars(loop.server))))
    except Exception as error:
        return _Failed(repr(error))
    vars(loop.server).clear()
    vars(loop.server).update(state)
    return _state(loop)


def _statistics(loop: Loop) -> Statistics:
    tally = loop.tally
    alive = tally.now() - tally.born
    return Statistics(alive, tally.num_messages, tally.num_replies, loop.num_postponed, loop.is_suspended)


def _ask(server: Server, command: object, timeout: float | None) -> Any:
    return here().ask(address(server), System(command), timeout)
