"""Meter: how fast a batch goes, and how long it still takes. Counts from this start on; is told the time."""

from dataclasses import dataclass

from deploy.jobs.book import Book


@dataclass(frozen=True, slots=True)
class Figures:
    """How things stand."""

    num_lines: int
    num_done: int
    num_failed: int
    tokens_per_second: float
    seconds_left: float | None  # None: nothing was seen to say it by

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
        failed = f", {self.num_failed:,} failed" if self.num_failed else ""
        return f"{self.num_done:,} of {self.num_lines:,} lines{failed}, {self.tokens_per_second:,.0f} tokens/s{left}"


class Meter:
    """Owned by one start of a batch."""

    def __init__(self, num_lines: int, book: Book, now: float) -> None:
        self._num_lines = num_lines
        self._book = book
        self._began = now
        self._done_before = len(book.done)
        self._tokens_before = book.tally.completion_tokens

    def figures(self, now: float) -> Figures:
        elapsed = max(now - self._began, 1e-9)
        num_done, tally = len(self._book.done), self._book.tally
        num_new = num_done - self._done_before
        left = (self._num_lines - num_done) * elapsed / num_new if num_new else None
        speed = (tally.completion_tokens - self._tokens_before) / elapsed
        return Figures(self._num_lines, num_done, tally.failed, speed, left)


def duration(seconds: float) -> str:
    """`duration(3725)` is "1 h 2 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
