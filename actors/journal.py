"""Journal: an append-only log of records that survives its owner. Knows nothing of what the records mean.

Two levels. `kill-safe`: a committed record has been given to the operating system, and outlives a killed process.
`power-safe`: it is on the disk as well. Records appended together are committed together, at the cost of one.

A write that fails leaves the file as it was, as far as the disk allows, and closes the journal for appending: what it
holds is then the past up to that moment, in order and without a gap. `compact` starts a new file with what is still
needed and opens it again. Retrying in place was rejected: after a failed sync nobody knows which bytes are there.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgpack

from actors.journal_file import Disk, lock
from actors.journal_records import Damage, frame, scan
from actors.refusals import JournalFailing

Level = Literal["kill-safe", "power-safe"]
LOCK = "journal.lock"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was found on opening: the records before the first damage."""

    records: tuple[Any, ...]
    damage: Damage | None


def check_free(directory: Path) -> None:
    """JournalTaken if somebody owns the journal there."""
    if directory.is_dir():
        Disk().close(lock(directory / LOCK))


class Journal:
    """Owned by one process, one directory each."""

    def __init__(self, directory: Path, level: Level = "kill-safe", disk: Disk | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "journal"
        self.level = level
        self.disk = disk or Disk()
        self.num_bytes = 0  # committed
        self.num_compacted_bytes = 0  # of them, those that the last compaction wrote, if it was this owner's
        self.failure: str | None = None  # why nothing can be appended
        self._pending: list[bytes] = []
        self._lock = lock(directory / LOCK)
        try:
            self._file = self.disk.open(self.path)
        except BaseException:
            Disk().close(self._lock)
            raise

    def recover(self) -> Recovered:
        """Read the past. What stands behind a damage is set aside in a file of its own, and cut off."""
        data = self.disk.read(self._file)
        found = scan(data)
        self.num_bytes = found.end
        if found.damage is not None:
            self._set_aside(data, found.damage)
        records = tuple(msgpack.unpackb(payload, strict_map_key=False) for payload in found.payloads)
        return Recovered(records, found.damage)

    def append(self, record: Any) -> None:
        """Have a record written with the next commit."""
        self._pending.append(frame(msgpack.packb(record)))

    @property
    def has_pending(self) -> bool:
        return bool(self._pending)

    def commit(self, *, is_lasting: bool = True) -> None:
        """Write what was appended, all or nothing; JournalFailing if the disk does not take it.

        Not `is_lasting`: it may wait for the next lasting commit to be on the disk as well.
        """
        data, self._pending = b"".join(self._pending), []
        if not data:
            return
        if self.failure is not None:
            raise JournalFailing(f"the journal is closed since a write failed: {self.failure}")
        try:
            self._write(self._file, data, is_lasting)
        except OSError as error:
            self.failure = str(error)
            self._cut(self.num_bytes)
            raise JournalFailing(f"the journal cannot be written: {error}") from None
        self.num_bytes += len(data)

    def compact(self, records: Iterable[Any]) -> None:
        """Begin anew with these records in place of all before; JournalFailing leaves everything as it was."""
        fresh = self.path.with_name("journal.next")
        data = b"".join(frame(msgpack.packb(record)) for record in records)
        descriptor: int | None = None
        try:
            self.disk.remove(fresh)
            descriptor = self.disk.open(fresh)
            self._write(descriptor, data)
            self.disk.rename(fresh, self.path)
        except OSError as error:
            if descriptor is not None:
                self._close(descriptor)
            raise JournalFailing(f"the journal cannot be compacted: {error}") from None
        self._close(self._file)
        self._file, self._pending, self.failure = descriptor, [], None
        self.num_bytes = self.num_compacted_bytes = len(data)
        self._sync_name()

    def close(self) -> None:
        self._close(self._file)
        Disk().close(self._lock)

    def _write(self, descriptor: int, data: bytes, is_lasting: bool = True) -> None:
        rest = memoryview(data)
        while rest:
            written = self.disk.write(descriptor, rest)
            if not written:
                raise OSError("the disk takes no more bytes")
            rest = rest[written:]
        if is_lasting and self.level == "power-safe":
            self.disk.sync(descriptor)

    def _set_aside(self, data: bytes, damage: Damage) -> None:
        try:
            if not damage.is_torn_tail:
                self.path.with_name(f"journal.damaged-{damage.offset}").write_bytes(data[damage.offset :])
            self.disk.truncate(self._file, damage.offset)
        except OSError as error:
            self.failure = f"the damaged end could not be cut: {error}"

    def _cut(self, size: int) -> None:
        """Remove a half-written tail; where even that fails, reading stops there by itself."""
        try:
            self.disk.truncate(self._file, size)
        except OSError as error:
            self.failure = f"{self.failure}; the half-written tail could not be cut: {error}"

    def _sync_name(self) -> None:
        """Until the directory is on the disk too, a power cut could bring the old file back: append nothing before."""
        if self.level == "kill-safe":
            return
        try:
            self.disk.sync_directory(self.path.parent)
        except OSError as error:
            self.failure = str(error)
            raise JournalFailing(f"the journal's directory cannot be written: {error}") from None

    def _close(self, descriptor: int) -> None:
        with suppress(OSError):  # the descriptor is gone either way, and what was committed is committed
            self.disk.close(descriptor)
