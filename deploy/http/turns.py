"""Turns: in which order requests go to the engine. One that may have killed it goes by itself, while others wait.

Suspects are only sent to an engine that has just begun, so there is nothing running that would have to be set aside.
"""

from collections import deque
from collections.abc import Iterable

from engine.request import Request


class Turns:
    """Owned by the InlineBackend; empty again when the engine dies."""

    def __init__(self) -> None:
        self.alone: str | None = None  # whom to blame if the engine dies now
        self._lonely: deque[Request] = deque()
        self._others: deque[Request] = deque()

    def put(self, requests: Iterable[Request], is_alone: bool) -> None:
        (self._lonely if is_alone else self._others).extend(requests)

    def take(self) -> list[Request]:
        """Who goes now."""
        if self.alone is not None:
            return []
        if self._lonely:
            first = self._lonely.popleft()
            self.alone = first.id
            return [first]
        going = list(self._others)
        self._others.clear()
        return going

    def proved(self, request_id: str) -> None:
        """It has got further, or ended; the next one may go."""
        if request_id == self.alone:
            self.alone = None

    def clear(self) -> None:
        self.alone = None
        self._lonely.clear()
        self._others.clear()
