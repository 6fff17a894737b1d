"""Names: one living process a name, and an epoch for each of its lives. Knows no Ray, only a shared table.

The table can do one thing at once for everybody: put a key that is not there. An epoch is claimed that way, so it is
given out once, and of two who want to start the same process one finds the claim taken, and waits to see the other's
process born. Ray's own names are not enough: a dead actor's name may be held, or free, for a moment too long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from actors.exits import AlreadyStarted
from actors.pid import Pid

CLAIMED, BORN = b"claimed", b"born"
BIRTH_SECONDS = 5.0


class Table(Protocol):
    def put_new(self, key: str, value: bytes) -> bool: ...
    def put(self, key: str, value: bytes) -> None: ...
    def get(self, key: str) -> bytes | None: ...
    def delete(self, key: str) -> None: ...
    def keys(self, prefix: str) -> list[str]: ...


def claim(name: str, table: Table, is_alive: Callable[[Pid], bool]) -> Pid:
    """The pid of the next life of a name. Raises AlreadyStarted if the present one goes on."""
    while True:
        last = latest(name, table)
        if last is not None:
            _wait_for_birth(last, table)
            if is_alive(last):
                raise AlreadyStarted(last)
        pid = Pid(name, last.epoch + 1 if last else 1)
        if not table.put_new(str(pid), CLAIMED):
            continue
        if latest(name, table) != pid:  # it was had before, and forgotten: others have gone on meanwhile
            table.delete(str(pid))
            continue
        if last is not None:
            table.delete(str(last))
        return pid


def born(pid: Pid, table: Table) -> None:
    table.put(str(pid), BORN)


def latest(name: str, table: Table) -> Pid | None:
    lives = [pid for pid in map(Pid.parse, table.keys(f"{name}/")) if pid.name == name]
    return max(lives, default=None)


def lives(prefix: str, table: Table) -> dict[str, int]:
    """The last epoch of each name that begins so."""
    return {pid.name: pid.epoch for pid in sorted(map(Pid.parse, table.keys(prefix)))}


def _wait_for_birth(pid: Pid, table: Table) -> None:
    """Whoever claimed it is about to start it, or has died on the way there."""
    deadline = time.monotonic() + BIRTH_SECONDS
    while table.get(str(pid)) == CLAIMED and time.monotonic() < deadline:
        time.sleep(0.005)
