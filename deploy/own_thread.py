"""OwnThread: the one thread, of one process, that something may be used from; others are told so in a sentence.

MLX binds what is not computed yet to the thread that asked for it, and an engine always has a step on its way: two
threads that take turns at one break it for both. A forked process has none of the threads that compute.
"""

import os
import threading

from engine.refusal import Unsupported


class OwnThread:
    """The thread that made it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._process = os.getpid()
        self._thread = threading.current_thread()

    @property
    def is_here(self) -> bool:
        return os.getpid() == self._process and threading.current_thread() is self._thread

    def check(self) -> None:
        if os.getpid() != self._process:
            raise Unsupported(f"{self._what} does not come along into a forked process: make one there")
        if not self.is_here:
            here, there = threading.current_thread().name, self._thread.name
            raise Unsupported(f"{self._what} serves the thread that made it, {there}; this is {here}")
