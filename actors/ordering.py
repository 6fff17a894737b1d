"""Ordering: each sender's messages, in the order they were sent. Knows no transport and no clock.

Ray gives an async actor its messages about in order, and a large one, which goes another way, late. So every message
carries its sender and a number, and what comes early is held back. A number that never comes (its message was lost
with a connection) holds the later ones only until the host calls `skip`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class _Line(Generic[Item]):
    expected: int = 0
    early: dict[int, Item] = field(default_factory=dict)


class Ordering(Generic[Item]):
    """Owned by one process's host."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line[Item]] = {}

    def arrive(self, sender: str, number: int, item: Item) -> list[Item]:
        """What may be handled now: nothing, this one, or this one and those that waited for it."""
        line = self._lines.setdefault(sender, _Line())
        if number < line.expected:
            return [item]  # skipped before: late is better than never
        line.early[number] = item
        return self._release(line)

    def missing(self, sender: str) -> int | None:
        """The number that this sender's later messages wait for."""
        line = self._lines.get(sender)
        return line.expected if line is not None and line.early else None

    def skip(self, sender: str, number: int) -> list[Item]:
        """Give up on a number that is still missing, and go on with what is there."""
        if self.missing(sender) != number:
            return []
        line = self._lines[sender]
        line.expected = min(line.early)
        return self._release(line)

    def _release(self, line: _Line[Item]) -> list[Item]:
        released: list[Item] = []
        while line.expected in line.early:
            released.append(line.early.pop(line.expected))
            line.expected += 1
        return released
