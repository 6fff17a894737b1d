"""Precedence: where every core computes, who only passes messages on does not set aside who computes.

Linux lets a process that wakes up take the core of one that computes, and the kernels' threads wait for each other, so
what one is kept from is lost on both. Who gives way has as much of the cores as before, when a time slice ends at the
latest, and that is a few milliseconds.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

IS_HERE = sys.platform == "linux"


@contextmanager
def given() -> Iterator[None]:
    """This thread gives way within, and so does what it starts there, for good: threads and processes."""
    if not has_policy("SCHED_OTHER"):
        yield
        return
    set_policy(os.SCHED_BATCH)
    try:
        yield
    finally:
        set_policy(os.SCHED_OTHER)


def take() -> None:
    """This thread, and those that it starts, give way no more."""
    if has_policy("SCHED_BATCH"):
        set_policy(os.SCHED_OTHER)


def has_policy(name: str) -> bool:
    return IS_HERE and os.sched_getscheduler(0) == getattr(os, name)


def set_policy(policy: int) -> None:
    with suppress(OSError):  # some sandboxes refuse it, and then nobody gives way
        os.sched_setscheduler(0, policy, os.sched_param(0))
