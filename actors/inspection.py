"""Inspection: what can be asked about a process from outside, and what its loop does when it is asked.

A server need not know of this: its loop answers, between two messages. What it shows as its state is `format_state`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from actors.envelope import Envelope
from actors.exits import Reason
from actors.genserver import GenServer


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


@dataclass(frozen=True, slots=True)
class GetState: ...


@dataclass(frozen=True, slots=True)
class ReplaceState:
    change: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Suspend:
    is_suspended: bool


@dataclass(frozen=True, slots=True)
class GetStatistics: ...


@dataclass(frozen=True, slots=True)
class Trace:
    keep: int


@dataclass(frozen=True, slots=True)
class GetTrace: ...


@dataclass(frozen=True, slots=True)
class Terminate:
    reason: Reason


@dataclass(frozen=True, slots=True)
class Failed:
    why: str


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


class Inspected(Protocol):
    """What an inspection needs of a loop."""

    server: GenServer | None
    tally: Tally
    is_suspended: bool

    @property
    def num_postponed(self) -> int: ...
    def end(self, reason: Reason) -> None: ...


def obey(command: object, process: Inspected) -> object:
    """The loop's half: do what was asked, and give the answer."""
    match command:
        case GetState():
            return _state(process)
        case ReplaceState(change):
            return _replace(process, change)
        case Suspend(is_suspended):
            process.is_suspended = is_suspended
        case GetStatistics():
            return _statistics(process)
        case Trace(keep):
            process.tally.events = deque(maxlen=keep) if keep else None
        case GetTrace():
            return list(process.tally.events or ())
        case Terminate(reason):
            process.end(reason)
    return None


def _state(process: Inspected) -> object:
    assert process.server is not None
    return process.server.format_state()


def _replace(process: Inspected, change: Callable[[Any], Any]) -> object:
    # A change that fails must leave the server as it was: it is the visitor's mistake, not the server's.
    try:
        state = dict(change(dict(vars(process.server))))
    except Exception as error:
        return Failed(repr(error))
    vars(process.server).clear()
    vars(process.server).update(state)
    return _state(process)


def _statistics(process: Inspected) -> Statistics:
    tally = process.tally
    alive = tally.now() - tally.born
    return Statistics(alive, tally.num_messages, tally.num_replies, process.num_postponed, process.is_suspended)
