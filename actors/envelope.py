"""Envelopes: everything that can arrive at a process. A server sees what is inside; the loop reads the outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from actors.exits import Reason
from actors.pid import Pid, Ref


@dataclass(frozen=True, slots=True)
class Call:
    message: object


@dataclass(frozen=True, slots=True)
class Cast:
    message: object


@dataclass(frozen=True, slots=True)
class Info:
    message: object


@dataclass(frozen=True, slots=True)
class System:
    """A question to the loop and not to the server: see `actors/inspection.py`."""

    command: object


@dataclass(frozen=True, slots=True)
class Fired:
    """A timer that ran out; it is ignored if it was cancelled meanwhile."""

    ref: Ref
    message: object


@dataclass(frozen=True, slots=True)
class Down:
    """A monitored process is gone. Arrives at `handle_info`, once a monitor."""

    ref: Ref
    pid: Pid
    reason: Reason


@dataclass(frozen=True, slots=True)
class ExitSignal:
    """A linked process ended, or somebody asked us to. Arrives at `handle_info` where exits are trapped."""

    sender: Pid | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class Link:
    """The sender's end of a link is made; make ours."""

    sender: Pid


@dataclass(frozen=True, slots=True)
class Unlink:
    sender: Pid


@dataclass(frozen=True, slots=True)
class GoOn:
    """The first message of every process: it has been started, and its `handle_continue` may run."""


Envelope: TypeAlias = GoOn | Call | Cast | Info | System | Fired | Down | ExitSignal | Link | Unlink
