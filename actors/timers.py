"""Timers: what is to happen when. Knows no clock; whoever owns it says what time it is."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Fire = Callable[[], None]


class Timers:
    """Ordered by time, and by age among those of one time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._fires: dict[int, Fire] = {}  # a timer that is not in here was cancelled
        self._numbers = count()

    def add(self, at: float, fire: Fire) -> Callable[[], None]:
        """The answer cancels it."""
        number = next(self._numbers)
        self._fires[number] = fire
        heapq.heappush(self._heap, (at, number))
        return lambda: self._cancel(number)

    @property
    def next_at(self) -> float | None:
        while self._heap and self._heap[0][1] not in self._fires:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> Fire | None:
        """The next one that is due, if any."""
        at = self.next_at
        if at is None or at > now:
            return None
        return self._fires.pop(heapq.heappop(self._heap)[1])

    def _cancel(self, number: int) -> None:
        self._fires.pop(number, None)
