"""The journal under everything that a disk, a crash or a second owner can do to it."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from actors.journal import Journal, Level
from actors.journal_file import Disk
from actors.journal_records import SEED, frame, scan
from actors.refusals import JournalFailing, JournalTaken

RECORDS = [["Accepted", 1.5, b"body", {"n": 4}], ["Told", 2.0, "model/1", b"\x00" * 20], ["Ended", 3.0, "r", None]]
LEVELS: tuple[Level, ...] = ("kill-safe", "power-safe")


def written(directory: Path, records: list[Any] = RECORDS) -> bytes:
    journal = Journal(directory)
    journal.recover()
    for record in records:
        journal.append(record)
    journal.commit()
    journal.close()
    return (directory / "journal").read_bytes()


def reopened(directory: Path) -> tuple[list[Any], Any]:
    journal = Journal(directory)
    found = journal.recover()
    journal.close()
    return list(found.records), found.damage


def boundaries(data: bytes) -> list[int]:
    ends = [0]
    for payload in scan(data).payloads:
        ends.append(ends[-1] + len(frame(payload)))
    return ends


def test_what_was_committed_is_read_again(tmp_path: Path) -> None:
    written(tmp_path)
    assert reopened(tmp_path) == (RECORDS, None)


def test_a_journal_cut_at_any_byte_gives_the_whole_records_before_the_cut(tmp_path: Path) -> None:
    data = written(tmp_path)
    ends = boundaries(data)
    for size in range(len(data) + 1):
        (tmp_path / "journal").write_bytes(data[:size])
        records, damage = reopened(tmp_path)
        whole = sum(end <= size for end in ends) - 1
        assert records == RECORDS[:whole]
        assert (damage is None) == (size in ends)
        assert damage is None or (damage.offset == ends[whole] and damage.is_torn_tail)
        assert (tmp_path / "journal").stat().st_size == ends[whole], "the torn tail is cut"


def test_any_flipped_bit_is_found_where_it_is_and_nothing_wrong_is_read(tmp_path: Path) -> None:
    data = written(tmp_path)
    ends = boundaries(data)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        found = scan(bytes(damaged))
        whole = sum(end <= bit // 8 for end in ends) - 1
        assert found.payloads == scan(data).payloads[:whole]
        assert found.damage is not None and found.damage.offset == ends[whole]


def test_a_damage_in_the_middle_is_reported_set_aside_and_cut_off(tmp_path: Path) -> None:
    data = bytearray(written(tmp_path))
    end = boundaries(bytes(data))[1]
    data[end + 9] ^= 1
    (tmp_path / "journal").write_bytes(data)
    records, damage = reopened(tmp_path)
    assert records == RECORDS[:1]
    assert damage.offset == end and damage.num_bytes == len(data) - end and damage.reason == "a wrong checksum"
    assert (tmp_path / f"journal.damaged-{end}").read_bytes() == data[end:]
    assert reopened(tmp_path) == (RECORDS[:1], None)


@pytest.mark.parametrize("filler", [b"\x00" * 64, b"\xff" * 64])
def test_a_stretch_of_zeros_or_ones_is_no_record(filler: bytes) -> None:
    assert scan(filler).payloads == ()
    assert scan(filler).damage is not None
    assert SEED != 0


def test_a_second_owner_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(JournalTaken, match=str(os.getpid())):
        Journal(tmp_path)
    other = f"from pathlib import Path; from actors.journal import Journal; Journal(Path({str(tmp_path)!r}))"
    run = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode == 1 and "JournalTaken" in run.stderr
    journal.close()
    Journal(tmp_path).close()


class FailingDisk(Disk):
    """Fails at the k-th call that changes anything: with an error, or by writing too little first."""

    def __init__(self, fails_at: int, number: int, num_taken: int = 0, lasts: bool = False) -> None:
        self.calls = 0
        self.fails_at = fails_at
        self.number = number
        self.num_taken = num_taken
        self.lasts = lasts

    def counted(self) -> bool:
        self.calls += 1
        return self.calls == self.fails_at or (self.lasts and self.calls > self.fails_at)

    def fail(self) -> None:
        raise OSError(self.number, os.strerror(self.number))

    def write(self, descriptor: int, data: bytes | memoryview) -> int:
        if self.counted():
            if self.num_taken and self.calls == self.fails_at:
                self.fails_at += 1  # a short write first, then the error
                return super().write(descriptor, data[: self.num_taken])
            self.fail()
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        if self.counted():
            self.fail()
        super().sync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        if self.counted():
            self.fail()
        super().truncate(descriptor, size)

    def rename(self, source: Path, target: Path) -> None:
        if self.counted():
            self.fail()
        super().rename(source, target)

    def sync_directory(self, directory: Path) -> None:
        if self.counted():
            self.fail()
        super().sync_directory(directory)

    def open(self, path: Path) -> int:
        if self.counted():
            self.fail()
        return super().open(path)


def history(directory: Path, level: Level, disk: Disk) -> tuple[list[Any], list[Any]]:
    """Twenty records, one commit each, with compactions: those that were confirmed, and those that must still be there.

    The confirmed ones are what a server would have answered for; it heals a closed journal by compaction.
    """
    confirmed: list[Any] = []
    try:
        journal = Journal(directory, level, disk)
    except OSError:
        return [], []
    journal.recover()
    for number in range(20):
        record = ["Accepted", number, b"x" * 40]
        journal.append(record)
        try:
            journal.commit()
            confirmed.append(record)
        except JournalFailing:
            attempt(lambda: journal.compact(confirmed))
        if number % 7 == 6:
            attempt(lambda: journal.compact(confirmed))
    journal.close()
    return confirmed, confirmed


def attempt(action: Callable[[], None]) -> None:
    with suppress(JournalFailing):
        action()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("number", "num_taken", "lasts"),
    [
        (errno.ENOSPC, 0, False),
        (errno.EIO, 0, False),
        (errno.ENOSPC, 7, False),
        (errno.EIO, 3, True),
        (errno.EIO, 0, True),
    ],
)
def test_a_failing_call_at_any_moment_loses_nothing_confirmed_and_invents_nothing(
    tmp_path: Path, level: Level, number: int, num_taken: int, lasts: bool
) -> None:
    fails_at = 0
    while True:
        fails_at += 1
        directory = tmp_path / str(fails_at)
        disk = FailingDisk(fails_at, number, num_taken, lasts)
        confirmed, _ = history(directory, level, disk)
        records, _ = reopened(directory)
        if lasts:  # cutting failed too: one record that was refused may stand at the end, whole or torn
            assert records[: len(confirmed)] == confirmed and len(records) <= len(confirmed) + 1
        else:
            assert records == confirmed
            assert len(confirmed) >= 18 or fails_at == 1
        if disk.calls < fails_at:
            break
    assert fails_at > 20


def test_a_closed_journal_refuses_until_it_is_compacted(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "kill-safe", FailingDisk(3, errno.ENOSPC))
    journal.recover()
    for record in RECORDS[:2]:
        journal.append(record)
        attempt(journal.commit)
    assert journal.failure is not None
    journal.append(RECORDS[2])
    with pytest.raises(JournalFailing, match="No space left"):
        journal.commit()
    journal.compact(RECORDS[:1])
    journal.append(RECORDS[2])
    journal.commit()
    journal.close()
    assert reopened(tmp_path) == ([RECORDS[0], RECORDS[2]], None)


def test_records_appended_together_cost_one_write(tmp_path: Path) -> None:
    disk = FailingDisk(0, errno.EIO)
    journal = Journal(tmp_path, "power-safe", disk)
    journal.recover()
    before = disk.calls
    for record in RECORDS * 10:
        journal.append(record)
    journal.commit()
    assert disk.calls - before == 2, "one write, one sync"
    journal.close()


def test_compaction_leaves_only_what_was_given(tmp_path: Path) -> None:
    data = written(tmp_path, RECORDS * 20)
    journal = Journal(tmp_path)
    journal.recover()
    journal.compact(RECORDS[1:2])
    assert journal.num_bytes < len(data) // 20
    journal.append(RECORDS[2])
    journal.commit()
    journal.close()
    assert reopened(tmp_path) == (RECORDS[1:], None)


def test_a_killed_writer_loses_nothing_that_it_confirmed(tmp_path: Path) -> None:
    writer = f"""
from pathlib import Path
from actors.journal import Journal
journal = Journal(Path({str(tmp_path)!r}))
journal.recover()
number = 0
while True:
    journal.append([number, b"x" * (number % 97)])
    journal.commit()
    print(number, flush=True)
    number += 1
"""
    process = subprocess.Popen(
        [sys.executable, "-c", writer], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 500:
            break
    process.kill()
    last = max([500, *map(int, process.stdout.read().split("\n")[:-1])])
    process.wait()
    process.stdout.close()
    records, damage = reopened(tmp_path)
    assert [number for number, _ in records] == list(range(len(records))) and len(records) > last
    assert damage is None or damage.is_torn_tail
