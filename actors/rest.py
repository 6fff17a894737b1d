"""Rest: how a process sleeps while Ray has nothing for it.

In each of its processes Ray looks for signals a hundred times a second, on the thread that takes Ray's calls, and first
asks whether Python is ending. Ten processes that wait and hardly compute so take a tenth of its speed from a model that
computes on two cores. Messages come over sockets, so while there is no call by Ray the answer takes its time. The next
such call waits for it; signals, and Ray's ways of ending a process, do not.
"""

import sys
import threading
import time

REST_SECONDS = 0.2  # the most that a call by Ray waits
AWAKE_SECONDS = 3.0  # after one, as others may follow


class Rest:
    """Stands for `sys` where Ray asks."""

    def __init__(self) -> None:
        self._disturbed_at = time.monotonic()
        self._is_disturbed = threading.Event()

    def disturb(self) -> None:
        """A call came by Ray, or one is to come."""
        self._disturbed_at = time.monotonic()
        self._is_disturbed.set()

    def is_finalizing(self) -> bool:
        is_quiet = time.monotonic() - self._disturbed_at > AWAKE_SECONDS
        if is_quiet and threading.current_thread() is threading.main_thread() and not sys.is_finalizing():
            self._is_disturbed.wait(REST_SECONDS)
            self._is_disturbed.clear()
        return sys.is_finalizing()

    def __getattr__(self, name: str) -> object:
        return getattr(sys, name)
