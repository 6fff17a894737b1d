"""Progress: what a model server is doing, in a small file that others map and read without asking it.

A process that hangs answers nothing, and one that died even less; these bytes are there all the same. They are written
around every step, so they say how long the present one has lasted, and which request was running alone when it died.
"""

import faulthandler
import fcntl
import mmap
import os
import signal
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import NamedTuple

# process id, steps, began (0: idle), allowed, beat, ready, alone; times in ns of the monotonic clock
# then what is known of steps: seconds of the slowest, seconds a prompt's token (0: nothing)
LAYOUT = Struct("<QQQQQQ16sdd")
MIN_ALLOWED_SECONDS = 1.5  # of silence; two looks of the watchdog later it is at an end, after two seconds
BEAT_SECONDS = 0.25  # between two signs of life while there is nothing to do
NOBODY = bytes(16)


class Lesson(NamedTuple):
    """What a model server has learned of its steps, for the one that comes after it."""

    slowest_seconds: float = 0.0  # 0: nothing yet
    prompt_token_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Glance:
    """One look at a model server."""

    process_id: int
    steps: int
    began: float | None  # None: no step is under way
    allowed_seconds: float
    beat: float  # when it was last seen to do anything
    is_ready: bool
    alone: bytes
    lesson: Lesson

    def is_stuck(self, now: float) -> bool:
        """Whether the step under way has lasted longer than it should, or an idle one gives no sign of life."""
        if self.began is not None:
            return now - self.began > self.allowed_seconds
        return self.is_ready and now - self.beat > MIN_ALLOWED_SECONDS

    def runs_alone(self, request_id: str) -> bool:
        return self.alone == mark_of(request_id)


def mark_of(request_id: str) -> bytes:
    return blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def progress_path(directory: Path, epoch: str) -> Path:
    return directory / "progress" / epoch.replace("/", ".")


def glance(path: Path) -> Glance | None:
    """Look at a model server, alive or dead; None if it has left no trace."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < LAYOUT.size:
        return None
    process_id, steps, began, allowed, beat, ready, alone, *learned = LAYOUT.unpack_from(data)
    lesson = Lesson(*learned)
    since = began / 1e9 if began else None
    return Glance(process_id, steps, since, allowed / 1e9, beat / 1e9, bool(ready), alone, lesson)


def has_writer(path: Path) -> bool:
    """Whether the model server of this file is alive: it holds a lock on it, which the kernel takes from the dead."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


class Progress:
    """The writer's side. Owned by one model server."""

    def __init__(self, path: Path, inherited: Lesson) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(LAYOUT.pack(os.getpid(), 0, 0, 0, 0, 0, NOBODY, *inherited))
        self._file = os.open(partial, os.O_RDWR | os.O_CLOEXEC)  # open and locked for as long as this process lives
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._map = mmap.mmap(self._file, LAYOUT.size)
        os.replace(partial, path)  # seen whole or not at all
        # on SIGUSR1, which would end the process else, every thread's stack goes to a file beside it
        stacks = os.open(path.with_name(path.name + ".stacks"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
        self._steps = 0
        self._ready = 0
        self._alone = NOBODY
        self._lesson = inherited

    def ready(self) -> None:
        self._ready = 1
        self._write(0, 0)

    def run_alone(self, request_id: str | None) -> None:
        self._alone = NOBODY if request_id is None else mark_of(request_id)
        self._write(0, 0)

    def begin(self, allowed_seconds: float, lesson: Lesson | None = None) -> None:
        self._steps += 1
        self._lesson = lesson or self._lesson
        self._write(time.monotonic_ns(), int(allowed_seconds * 1e9))

    def end(self) -> None:
        """Of a step; and, between steps, a sign of life."""
        self._write(0, 0)

    def _write(self, began: int, allowed: int) -> None:
        beat = time.monotonic_ns()
        moments = (os.getpid(), self._steps, began, allowed, beat, self._ready)
        LAYOUT.pack_into(self._map, 0, *moments, self._alone, *self._lesson)


def last_lesson(directory: Path, name: str) -> Lesson:
    """What the last life of a model server had learned that left a trace."""
    _, path = max(traces_of(directory, name), default=(0, None))
    seen = None if path is None else glance(path)
    return Lesson() if seen is None else seen.lesson


def traces_of(directory: Path, name: str) -> list[tuple[int, Path]]:
    """The progress files of its lives, the first one first."""
    traces = (directory / "progress").glob(f"{name}.*")
    return sorted((int(trace.suffix[1:]), trace) for trace in traces if trace.suffix[1:].isdigit())


def remove_traces(directory: Path, name: str, keep: int) -> None:
    """Delete the files of a model server's earlier lives, but for the last few."""
    for _, trace in traces_of(directory, name)[:-keep]:
        trace.unlink(missing_ok=True)
        trace.with_name(trace.name + ".stacks").unlink(missing_ok=True)
