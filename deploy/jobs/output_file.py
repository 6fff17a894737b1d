"""OutputFile: lines appended to a file, with a checksum of them all. What nobody vouches for is cut off on opening."""

import os
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from actors.journal_file import Disk
from deploy.jobs.troubles import cannot_write
from engine.refusal import BrokenFile

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file, with the checksum of everything before it."""

    num_bytes: int = 0
    checksum: int = 0


class OutputFile:
    """Owned by one batch."""

    def __init__(self, path: Path, mark: Mark, disk: Disk | None = None) -> None:
        if mark.num_bytes and not path.exists():
            raise BrokenFile(f"{path} is gone, and its progress record vouches for {mark.num_bytes} bytes of it")
        self.path = path
        self.mark = mark
        self._disk = disk or Disk()
        try:
            self._file = self._disk.open(path)
            try:
                check(path, self._file, mark)
                self._disk.truncate(self._file, mark.num_bytes)
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

    def close(self) -> None:
        self._disk.close(self._file)


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
