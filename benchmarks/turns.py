"""Turns: two programs that are compared have the machine one after the other, a few seconds each, again and again.

One stands still while the other runs, so that what else happens on the machine happens to both. On a machine that
others use too, whose speed comes and goes by a fifth, whole runs one after the other say less.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.refusal import Unsupported

PROCESSES = Path("/proc")


@contextmanager
def standing_still(root: int) -> Iterator[None]:
    """A process and all that it started, stopped meanwhile."""
    if not PROCESSES.exists():
        raise Unsupported("turns are taken on Linux alone, where /proc says who started whom")
    family = family_of(root)
    for process in family:
        tell(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in family:
            tell(process, signal.SIGCONT)


def family_of(root: int) -> list[int]:
    parents = dict(filter(None, map(parentage, PROCESSES.glob("[0-9]*/stat"))))
    family = [root]
    for process in family:  # grows meanwhile
        family += [child for child, parent in parents.items() if parent == process]
    return family


def parentage(stat: Path) -> tuple[int, int] | None:
    with suppress(OSError):  # it has ended
        return int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])
    return None


def tell(process: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, what)
