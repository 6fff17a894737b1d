"""What tests of batches share: files of lines, answers that take no model, and what a batch came to."""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any

from actors.journal_file import Disk
from deploy.jobs.answers import Answers
from deploy.jobs.asked import Asked, Words, asked_plainly
from deploy.jobs.book import Book, Places
from deploy.jobs.custom_ids import CustomIds
from deploy.jobs.input_file import survey
from deploy.jobs.lines import Line, read_lines
from deploy.jobs.raw_lines import raw_lines
from deploy.jobs.run import Run
from engine.completion import Choice, Completion, Usage
from engine.refusal import UnknownAdapter


class StubAnswers:
    """Answers with a digest of the question, a few turns of the loop later; counts what is asked at once."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.num_open = 0
        self.most_open = 0

    async def answer(self, words: Words) -> Completion:
        self.num_asked += 1
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            return await self.think(words)
        finally:
            self.num_open -= 1

    async def think(self, words: Words) -> Completion:
        if words.get("adapter") == "unknown":
            raise UnknownAdapter("no adapter 'unknown' is attached; attached are none", "adapter")
        digest = blake2b(repr(sorted(words.items())).encode()).digest()
        for _ in range(digest[0] % 4):
            await asyncio.sleep(0)
        return completion_of(digest.hex()[:16])


def completion_of(text: str) -> Completion:
    return Completion("stub", (Choice(0, text, tuple(text.encode()), "stop"),), Usage(3, len(text)))


def write_lines(path: Path, lines: Iterable[Mapping[str, Any] | str]) -> Path:
    """A batch file; a string stands as it is."""
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def run_batch(
    source: Path,
    output: Path,
    answers: Answers,
    *,
    disk: Disk | None = None,
    max_in_flight: int = 8,
    settings: str = "",
    ask: Callable[[Line], Asked] = lambda line: asked_plainly(line, {}),
    now: Callable[[], float] = time.monotonic,
) -> Book:
    """One start of a batch, from the first look at its input to the end."""
    with closing(Book(Places(output), survey(source), settings, disk)) as book:
        if not book.is_complete:
            with source.open("rb") as file, closing(CustomIds()) as ids:
                lines = read_lines(raw_lines(file), ids)
                asyncio.run(Run(lines, ask, answers, book, max_in_flight, now=now).run())
        return book


def written(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def by_line(path: Path) -> dict[int, dict[str, Any]]:
    """The same by line number; a number that comes twice is a failure."""
    lines = written(path)
    found = {line["line"]: line for line in lines}
    assert len(found) == len(lines), "a line is answered once"
    return found


class Killed(BaseException):
    """The process is gone: nothing that comes after has any effect."""


class DyingDisk(Disk):
    """Carries out so many operations; the one after them writes half of what it should, and everything ends."""

    def __init__(self, num_operations: int) -> None:
        self.left = num_operations

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        if self.left == 0:
            super().write(descriptor, data[: len(data) // 2])
        self.count()
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self.count()

    def truncate(self, descriptor: int, size: int) -> None:
        self.count()
        super().truncate(descriptor, size)

    def rename(self, source: Path, target: Path) -> None:
        self.count()
        super().rename(source, target)

    def sync_directory(self, directory: Path) -> None:
        self.count()


class FullDisk(Disk):
    """Takes so many bytes and no more."""

    def __init__(self, num_bytes: int) -> None:
        self.left = num_bytes

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        if self.left <= 0:
            raise OSError(28, "No space left on device")
        taken = super().write(descriptor, data[: self.left])
        self.left -= taken
        return taken
