"""Disk: the few operations that a journal asks of the operating system. A test gives one that fails."""

import fcntl
import os
from pathlib import Path

from actors.refusals import JournalTaken


class Disk:
    """The real one. Every method may raise OSError; `write` may write less than it was given."""

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def read(self, descriptor: int) -> bytes:
        """All bytes of the file."""
        size, parts = os.fstat(descriptor).st_size, list[bytes]()
        while sum(map(len, parts)) < size:
            part = os.pread(descriptor, min(size, 1 << 24), sum(map(len, parts)))
            if not part:
                break
            parts.append(part)
        return b"".join(parts)

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def sync_directory(self, directory: Path) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)


def lock(path: Path) -> int:
    """Own a lock file for as long as this process lives, or be refused. The kernel lets go when the owner dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise JournalTaken(f"the journal in {path.parent} belongs to another process, pid {owner}") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
