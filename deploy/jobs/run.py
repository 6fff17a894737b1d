"""Run: lines into answers into the book, with the engine kept full. Knows no files, no processes and no terminal.

A bounded number of lines is asked at once, somewhat more than the engine works on, so that whenever one ends the next
is there already. One loop owns the book; the questions are tasks beside it.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from actors.refusals import JournalFailing, Unavailable
from deploy.jobs.answers import Answers
from deploy.jobs.asked import Asked, Words
from deploy.jobs.book import Book
from deploy.jobs.lines import Blank, Fault, Line
from deploy.jobs.results import answer_line, error_line
from deploy.jobs.troubles import CannotWrite
from engine.completion import Completion, Usage
from engine.refusal import Refusal

VOUCH_SECONDS = 0.5
MAX_AHEAD = 1 << 16  # lines read beyond the oldest one that is still open: what memory and record have to hold
TROUBLES = (JournalFailing, Unavailable, CannotWrite)  # of the whole batch, and of no line


@dataclass(frozen=True, slots=True)
class Answered:
    number: int
    written: bytes
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    number: int
    written: bytes


class Run:
    """One pass over a batch's lines. Ended anyhow, what is in the book is vouched for, and the next run goes on."""

    def __init__(
        self,
        lines: Iterable[Line | Fault | Blank],
        ask: Callable[[Line], Asked],
        answers: Answers,
        book: Book,
        max_in_flight: int,
        on_progress: Callable[[], None] = lambda: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = iter(lines)
        self._ask = ask
        self._answers = answers
        self._book = book
        self._max_in_flight = max_in_flight
        self._on_progress = on_progress
        self._now = now
        self._in_flight: dict[asyncio.Task[Answered | Failed], int] = {}
        self._next: Line | None = None  # read, and too far ahead
        self._vouched_at = now()

    async def run(self) -> None:
        try:
            while self._fill():
                await self._collect()
            self._book.complete()
        finally:
            await self._abandon()
            self._book.vouch()
            self._on_progress()

    def _fill(self) -> bool:
        """Ask as much as may be asked at once; False if nothing is left."""
        while len(self._in_flight) < self._max_in_flight:
            line = self._next or self._read()
            if line is None:
                break
            if self._is_far_ahead(line):
                self._next = line
                break
            self._next = None
            self._in_flight[asyncio.ensure_future(self._answer(line))] = line.number
        return bool(self._in_flight)

    def _read(self) -> Line | None:
        """The next line that can be asked; what cannot is written down at once."""
        for line in self._lines:
            if line.number in self._book.done:
                continue
            match line:
                case Line():
                    return line
                case Fault(refusal=refusal) if isinstance(refusal, TROUBLES):
                    raise refusal
                case Fault():
                    self._book.failed(line.number, error_line(line, line.refusal))
                case Blank():
                    self._book.passed_over(line.number)
            self._vouch_in_time()
        return None

    def _is_far_ahead(self, line: Line) -> bool:
        return bool(self._in_flight) and line.number - min(self._in_flight.values()) > MAX_AHEAD

    async def _collect(self) -> None:
        """Wait until something ends, and write it down."""
        left = self._vouched_at + VOUCH_SECONDS - self._now()
        ended, _ = await asyncio.wait(self._in_flight, timeout=max(0, left), return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            del self._in_flight[task]
            match task.result():
                case Answered(number, written, usage):
                    self._book.answered(number, written, usage)
                case Failed(number, written):
                    self._book.failed(number, written)
        self._vouch_in_time()

    async def _answer(self, line: Line) -> Answered | Failed:
        try:
            asked = self._ask(line)
            completions = await self._all(asked.questions)
            usage = Usage(
                sum(completion.usage.prompt_tokens for completion in completions),
                sum(completion.usage.completion_tokens for completion in completions),
            )
            return Answered(line.number, answer_line(line, asked.tell(completions)), usage)
        except TROUBLES:
            raise
        except Refusal as refusal:
            return Failed(line.number, error_line(line, refusal))

    async def _all(self, questions: Sequence[Words]) -> list[Completion]:
        """Every answer, or the first refusal; the other questions are then withdrawn."""
        if len(questions) == 1:
            return [await self._answers.answer(questions[0])]
        tasks = [asyncio.ensure_future(self._answers.answer(words)) for words in questions]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _abandon(self) -> None:
        """Whatever is under way is asked again by the next run."""
        for task in self._in_flight:
            task.cancel()
        await asyncio.gather(*self._in_flight, return_exceptions=True)

    def _vouch_in_time(self) -> None:
        if self._now() - self._vouched_at >= VOUCH_SECONDS:
            self._book.vouch()
            self._vouched_at = self._now()
            self._on_progress()
