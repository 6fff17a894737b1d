"""Baton: threads of which exactly one runs. It lets many wait in the middle of their work, and stays deterministic.

A process that waits keeps its stack, so somebody else must go on, on another: a thread. But only who has the baton
runs, and it is given away in one place, when a wait begins or ends. Nothing here ever runs side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Frame = TypeVar("Frame")


class Gone(BaseException):
    """Unwinds the stack of somebody who is no more."""


@dataclass(eq=False, slots=True)
class Waiter:
    is_over: Callable[[], bool]
    deadline: float | None  # the one who works compares it with a clock
    is_late: bool = False
    error: BaseException | None = None
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    thread: threading.Thread = field(default_factory=threading.current_thread)

    @property
    def is_ready(self) -> bool:
        return self.is_late or self.error is not None or self.is_over()


class Baton(Generic[Frame]):
    """`work` does one piece of work, given who waits. `stack` belongs to whoever has the baton."""

    def __init__(self, work: Callable[[list[Waiter]], None]) -> None:
        self.stack: list[Frame] = []
        self._work = work
        self._waiters: list[Waiter] = []
        self._idle: list[threading.Semaphore] = []
        self._is_closed = False

    def wait(self, waiter: Waiter) -> None:
        """Let others work until it is over, or late."""
        if self._is_closed:
            raise Gone
        if waiter.is_over():
            return
        stack = self.stack
        self._waiters.append(waiter)
        self._pass_on()
        waiter.turn.acquire()
        self.stack = stack
        if waiter.error is not None:
            raise waiter.error

    def has_ready(self) -> bool:
        """Whether somebody could go on, apart from the outermost, who asks."""
        return any(waiter.is_ready for waiter in self._waiters[1:])

    def close(self) -> None:
        """Unwind everybody who still waits, one after the other, and let the threads end."""
        self._is_closed = True
        while self._waiters:
            waiter = self._waiters.pop()
            waiter.error = Gone()
            waiter.turn.release()
            waiter.thread.join()
        while self._idle:
            self._idle.pop().release()

    def _pass_on(self) -> None:
        if self._idle:
            self._idle.pop().release()
        else:
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        turn = threading.Semaphore(0)
        while True:
            self.stack = []
            try:
                waiter = self._next()
            except Gone:
                return
            self._idle.append(turn)
            waiter.turn.release()
            turn.acquire()

    def _next(self) -> Waiter:
        """Work until somebody can go on. What goes wrong here is told to the outermost."""
        while not self._is_closed:
            for index, waiter in enumerate(self._waiters):
                if waiter.is_ready:
                    return self._waiters.pop(index)
            try:
                self._work(self._waiters)
            except Exception as error:
                self._waiters[0].error = error
        raise Gone
