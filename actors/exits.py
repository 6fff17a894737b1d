"""Exits: why a process ended, and the exceptions that say so. Knows no process.

A reason is plain data, so that it crosses processes, compares and prints: "normal", "shutdown",
("shutdown", detail), "killed", "noproc", or ("error", type, message) for an exception that nobody caught.
"""

from __future__ import annotations

from typing import TypeAlias

from actors.pid import Pid, Server

Reason: TypeAlias = str | tuple[object, ...]

NORMAL = "normal"
SHUTDOWN = "shutdown"
KILL = "kill"  # sent: it cannot be trapped, and is seen by others as KILLED
KILLED = "killed"
NOPROC = "noproc"


def is_abnormal(reason: Reason) -> bool:
    """Whether a transient child is restarted after it, and a crash report written."""
    match reason:
        case "normal" | "shutdown" | ("shutdown", _):
            return False
        case _:
            return True


def reason_of(error: BaseException) -> Reason:
    """The reason that an exception which left a callback gives to its process."""
    if isinstance(error, Exit):
        return error.reason
    return ("error", type(error).__name__, str(error))


class Exit(Exception):
    """Raised by a callback to end its own process with a reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class CallFailed(Exception):
    """A call that got no answer: it fails in the caller, which is the one that knows what to do."""

    def __init__(self, server: Server, reason: Reason) -> None:
        super().__init__(server, reason)
        self.server = server
        self.reason = reason

    def __str__(self) -> str:
        return f"call to {self.server} failed: {self.reason}"


class Timeout(CallFailed):
    """The answer did not come in time; the server may still be at work on it, and its late reply is dropped."""


class NoProc(CallFailed):
    """Nobody lives at that address."""


class Died(CallFailed):
    """The server ended, with `reason`, before it answered."""


class NotCarried(Exception):
    """A message, or its answer, that cannot be made into bytes or back. Who was asked goes on."""


class StartFailed(Exception):
    """A process did not come to life."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class AlreadyStarted(StartFailed):
    """The name is taken by a living process."""

    def __init__(self, pid: Pid) -> None:
        Exception.__init__(self, pid)
        self.reason = ("already_started", pid)
        self.pid = pid


class Ignored(StartFailed):
    """`init` answered Ignore: the process is not needed here."""

    def __init__(self) -> None:
        Exception.__init__(self)
        self.reason = "ignore"
