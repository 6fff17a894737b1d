"""Sys: looking into a living process, as in Erlang; `actors/inspection.py` is the other half."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.envelope import System
from actors.exits import NORMAL, Died, Reason, Timeout
from actors.inspection import (
    Failed,
    GetState,
    GetStatistics,
    GetTrace,
    ReplaceState,
    Statistics,
    Suspend,
    Terminate,
    Trace,
    Traced,
)
from actors.node import CALL_SECONDS, address, here
from actors.pid import Server


def get_state(server: Server, timeout: float | None = CALL_SECONDS) -> Any:
    return _ask(server, GetState(), timeout)


def replace_state(server: Server, change: Callable[[Any], Any], timeout: float | None = CALL_SECONDS) -> Any:
    """Give the server's attributes, as a dict, to `change`, and put what it returns in their place."""
    answer = _ask(server, ReplaceState(change), timeout)
    if isinstance(answer, Failed):
        raise ValueError(f"replace_state of {server}: {answer.why}")
    return answer


def suspend(server: Server, timeout: float | None = CALL_SECONDS) -> None:
    """Let messages wait, until `resume`; only the questions of this file are answered."""
    _ask(server, Suspend(True), timeout)


def resume(server: Server, timeout: float | None = CALL_SECONDS) -> None:
    _ask(server, Suspend(False), timeout)


def statistics(server: Server, timeout: float | None = CALL_SECONDS) -> Statistics:
    answer = _ask(server, GetStatistics(), timeout)
    assert isinstance(answer, Statistics)
    return answer


def trace(server: Server, keep: int = 100, timeout: float | None = CALL_SECONDS) -> None:
    """Keep the last events from now on; 0 ends it."""
    _ask(server, Trace(keep), timeout)


def traced(server: Server, timeout: float | None = CALL_SECONDS) -> list[Traced]:
    """The events kept so far."""
    answer: list[Traced] = _ask(server, GetTrace(), timeout)
    return answer


def stop(server: Server, reason: Reason = NORMAL, timeout: float | None = None) -> None:
    """End a server in order, `terminate` included, and wait for it. Raises Timeout if it still lives then."""
    pid = address(server)
    try:
        _ask(pid, Terminate(reason), timeout)
    except Died as death:
        if death.reason != reason:
            raise
    if here().join(pid, timeout) is None:
        raise Timeout(server, "timeout")


def _ask(server: Server, command: object, timeout: float | None) -> Any:
    return here().ask(address(server), System(command), timeout)
