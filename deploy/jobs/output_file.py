"""OutputFile: lines appended to a file, with a checksum of them all.

On opening, what nobody vouches for is cut off if it can be of the batch itself, and else refused. Its owner locks the
file itself, for one file may have several names.
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from actors.journal_file import Disk
from deploy.jobs.troubles import OutputTaken, cannot_write
from engine.refusal import BrokenFile

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file, with the checksum of everything before it."""

    num_bytes: int = 0
    checksum: int = 0


class OutputFile:
    """Owned by one batch. `is_under_way`: begun and not complete, so that it may have written beyond the mark."""

    def __init__(self, path: Path, mark: Mark, is_under_way: bool, disk: Disk | None = None) -> None:
        if mark.num_bytes and not path.exists():
            raise BrokenFile(f"{path} is gone, and its progress record vouches for {mark.num_bytes} bytes of it")
        self.path = path
        self.mark = mark
        self._disk = disk or Disk()
        try:
            self._file = self._disk.open(path)
            try:
                own(path, self._file)
                check(path, self._file, mark)
                if is_under_way:
                    self._disk.truncate(self._file, mark.num_bytes)
                else:
                    check_nothing_behind(path, self._file, mark)
            except BaseException:
                self._disk.close(self._file)
                raise
        except OSError as trouble:
            raise cannot_write(path, trouble) from None

    def write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                written = self._disk.write(self._file, rest)
                if not written:
                    raise OSError("the disk takes no more bytes")
                rest = rest[written:]
        except OSError as trouble:
            raise cannot_write(self.path, trouble) from None
        self.mark = Mark(self.mark.num_bytes + len(line), crc32(line, self.mark.checksum))

    def sync(self) -> None:
        """Have it on the disk, so that what vouches for it is never there before."""
        try:
            self._disk.sync(self._file)
        except OSError as trouble:
            raise cannot_write(self.path, trouble) from None

    def remove_if_empty(self) -> None:
        """Not if it is another's that took its place."""
        status = os.fstat(self._file)
        if not status.st_size and os.path.lexists(self.path) and os.path.samestat(status, self.path.lstat()):
            self.path.unlink()

    def close(self) -> None:
        self._disk.close(self._file)


def own(path: Path, file: int) -> None:
    """The kernel lets go when the file is closed, or its owner dies."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputTaken(f"another batch is at work on {path}: name another output, or wait", "output") from None


def check(path: Path, file: int, mark: Mark) -> None:
    """Whether what stands before the mark is what was written."""
    checksum, offset = 0, 0
    while offset < mark.num_bytes:
        chunk = os.pread(file, min(CHUNK_BYTES, mark.num_bytes - offset), offset)
        if not chunk:
            raise BrokenFile(f"{path} has {offset} bytes, and its progress record vouches for {mark.num_bytes}")
        checksum, offset = crc32(chunk, checksum), offset + len(chunk)
    if checksum != mark.checksum:
        raise BrokenFile(f"{path} was changed since it was written: its progress record has another checksum")


def check_nothing_behind(path: Path, file: int, mark: Mark) -> None:
    size = os.fstat(file).st_size
    if size != mark.num_bytes:
        raise BrokenFile(
            f"{path} has {size} bytes, and its progress record vouches for {mark.num_bytes}: "
            "somebody else wrote the others; move them elsewhere, or name another output"
        )
