"""DoneLines: which lines are done, as ranges. Lines end a little out of order, so the ranges are few."""

from collections.abc import Iterable

Range = tuple[int, int]  # the first line, and the one behind the last


class DoneLines:
    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._ends: dict[int, int] = {}  # by start
        self._starts: dict[int, int] = {}  # by end
        self._low = 1  # no line below this is open
        self._count = 0
        for start, end in ranges:
            self._put(start, end)

    def add(self, number: int) -> None:
        assert number not in self, "a line is done once"
        self._put(number, number + 1)

    def __contains__(self, number: int) -> bool:
        return number < self._low or any(start <= number < end for start, end in self._ends.items())

    def __len__(self) -> int:
        return self._count

    @property
    def low(self) -> int:
        """The first line that is not done."""
        return self._low

    def ranges(self) -> list[Range]:
        return sorted(self._ends.items())

    def _put(self, start: int, end: int) -> None:
        """Join what touches."""
        self._count += end - start
        if start in self._starts:
            before = self._starts.pop(start)
            del self._ends[before]
            start = before
        if end in self._ends:
            after = self._ends.pop(end)
            del self._starts[after]
            end = after
        self._ends[start], self._starts[end] = end, start
        if start <= self._low < end:
            self._low = end
