"""deploy/jobs/run.py, book.py, progress_record.py, output_file.py: every line once, whatever happens in between."""

import asyncio
import itertools
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from actors.refusals import Unavailable
from deploy.jobs.asked import Words
from deploy.jobs.book import Book, Places
from deploy.jobs.custom_ids import CustomIds
from deploy.jobs.input_file import survey
from deploy.jobs.troubles import CannotWrite, ChangedInput, OutputTaken
from engine.completion import Completion
from engine.refusal import BrokenFile, Refusal
from tests.batches import DyingDisk, FullDisk, Killed, StubAnswers, by_line, run_batch, write_lines, written

COUNT = 60


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Good lines, with a fault, an unknown adapter, a blank and a doubled id among them."""
    lines: list[dict[str, Any] | str] = [{"prompt": f"prompt {number}"} for number in range(COUNT)]
    lines[7] = "{broken"
    lines[11] = {"prompt": "x", "adapter": "unknown"}
    lines[19] = ""
    lines[23] = lines[29] = {"prompt": "y", "custom_id": "twice"}
    lines[31] = {"prompt": "z", "temprature": 1}
    return write_lines(tmp_path / "in.jsonl", lines)


ANSWERED = set(range(1, COUNT + 1)) - {8, 12, 20, 30, 32}


def test_every_line_is_answered_once_or_in_the_error_file(source: Path, tmp_path: Path) -> None:
    book = run_batch(source, tmp_path / "out.jsonl", StubAnswers())
    assert set(by_line(tmp_path / "out.jsonl")) == ANSWERED
    errors = by_line(tmp_path / "out.errors.jsonl")
    assert {number: error["error"]["code"] for number, error in errors.items()} == {
        8: "bad_request",
        12: "unknown_adapter",
        30: "bad_request",
        32: "bad_request",
    }
    assert errors[30]["custom_id"] == "twice"
    assert (book.tally.answered, book.tally.failed) == (len(ANSWERED), 4)
    assert book.tally.prompt_tokens == 3 * len(ANSWERED)


def test_as_much_is_asked_at_once_as_may_be_and_no_more(source: Path, tmp_path: Path) -> None:
    answers = StubAnswers()
    run_batch(source, tmp_path / "out.jsonl", answers, max_in_flight=5)
    assert answers.most_open == 5


def test_a_finished_batch_asks_nothing_and_changes_nothing(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run_batch(source, output, StubAnswers())
    before, again = output.read_bytes(), StubAnswers()
    book = run_batch(source, output, again)
    assert book.is_complete and not again.num_asked
    assert output.read_bytes() == before


def test_without_failures_no_error_file_is_left(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    run_batch(source, tmp_path / "out.jsonl", StubAnswers())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.progress"]


def test_an_empty_input_is_done_at_once(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [])
    assert run_batch(source, tmp_path / "out.jsonl", StubAnswers()).is_complete
    assert written(tmp_path / "out.jsonl") == []


def fast_clock() -> Any:
    """A clock on which it is always time to vouch."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


@pytest.mark.parametrize("record_bytes", [1 << 20, 700], ids=["one record", "a record begun anew often"])
def test_killed_at_every_disk_operation_and_started_again_it_comes_to_the_same(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_bytes: int
) -> None:
    monkeypatch.setattr("deploy.jobs.progress_record.MAX_BYTES", record_bytes)
    run_batch(source, tmp_path / "whole.jsonl", StubAnswers())
    whole = by_line(tmp_path / "whole.jsonl"), by_line(tmp_path / "whole.errors.jsonl")
    for count in itertools.count():
        output = tmp_path / f"{count}.jsonl"
        try:
            run_batch(source, output, StubAnswers(), disk=DyingDisk(count), now=fast_clock())
            break
        except Killed:
            run_batch(source, output, StubAnswers())
        assert (by_line(output), by_line(tmp_path / f"{count}.errors.jsonl")) == whole, count
    assert count > 100


def test_killed_again_and_again_it_still_comes_to_the_same(source: Path, tmp_path: Path) -> None:
    run_batch(source, tmp_path / "whole.jsonl", StubAnswers())
    output, num_kills = tmp_path / "out.jsonl", 0
    for count in itertools.count(20, 4):
        try:
            run_batch(source, output, StubAnswers(), disk=DyingDisk(count), now=fast_clock())
            break
        except Killed:
            num_kills += 1
    assert num_kills >= 5
    assert by_line(output) == by_line(tmp_path / "whole.jsonl")
    assert by_line(tmp_path / "out.errors.jsonl") == by_line(tmp_path / "whole.errors.jsonl")


def test_what_was_vouched_for_is_not_asked_again(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        run_batch(source, output, StubAnswers(), disk=DyingDisk(90), now=fast_clock())
    with closing(Book(Places(output), survey(source), "")) as book:
        num_done = len(book.done)
    again = StubAnswers()
    run_batch(source, output, again)
    assert 10 < num_done < COUNT
    assert again.num_asked <= COUNT - num_done


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(source: Path, tmp_path: Path) -> None:
    run_batch(source, tmp_path / "whole.jsonl", StubAnswers())
    for size in (0, 100, 700, 1500, 3000, 5000):
        output = tmp_path / f"{size}.jsonl"
        with pytest.raises(CannotWrite, match="cannot be written: .*No space left on device"):
            run_batch(source, output, StubAnswers(), disk=FullDisk(size))
        run_batch(source, output, StubAnswers())
        assert by_line(output) == by_line(tmp_path / "whole.jsonl")


def test_a_full_temporary_directory_ends_the_batch_and_fails_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullIds(CustomIds):
        def __init__(self) -> None:
            super().__init__()
            self._table.execute("PRAGMA max_page_count = 5")

    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a", "custom_id": f"id {n}"} for n in range(1000)])
    with monkeypatch.context() as patch:
        patch.setattr("tests.batches.CustomIds", FullIds)
        with pytest.raises(CannotWrite, match="to the temporary directory: database or disk is full"):
            run_batch(source, tmp_path / "out.jsonl", StubAnswers())
    assert run_batch(source, tmp_path / "out.jsonl", StubAnswers()).tally.failed == 0


def begun(source: Path, output: Path) -> Path:
    """A batch that was killed somewhere in the middle; its progress record's file."""
    with pytest.raises(Killed):
        run_batch(source, output, StubAnswers(), disk=DyingDisk(40), now=fast_clock())
    return output.with_name(f"{output.name}.progress") / "journal"


def test_a_progress_record_damaged_at_any_byte_is_noticed_and_nothing_is_lost(source: Path, tmp_path: Path) -> None:
    run_batch(source, tmp_path / "whole.jsonl", StubAnswers())
    whole = by_line(tmp_path / "whole.jsonl")
    record = begun(source, tmp_path / "begun.jsonl")
    size, output = record.stat().st_size, tmp_path / "out.jsonl"
    num_refused = 0
    for offset in range(0, size, 3):
        for path in tmp_path.glob("out.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in tmp_path.glob("begun.*"):
            copy = tmp_path / path.name.replace("begun", "out")
            shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
        data = bytearray((output.with_name("out.jsonl.progress") / "journal").read_bytes())
        data[offset] ^= 1 << (offset % 8)
        (output.with_name("out.jsonl.progress") / "journal").write_bytes(data)
        try:
            book = run_batch(source, output, StubAnswers())
        except (BrokenFile, OutputTaken):
            num_refused += 1
            continue
        assert book.warning is not None and "is damaged at byte" in book.warning
        assert by_line(output) == whole, offset
    assert 0 < num_refused < size / 6


def test_a_changed_input_and_changed_settings_are_refused(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    begun(source, output)
    with pytest.raises(ChangedInput, match="the settings changed since this batch was begun"):
        run_batch(source, output, StubAnswers(), settings="other")
    with source.open("a") as file:
        file.write("\n")
    with pytest.raises(ChangedInput, match="the input changed since this batch was begun"):
        run_batch(source, output, StubAnswers())


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("missing/out.jsonl", "missing is no directory"),
        (".", "is a directory; a file is wanted"),
        ("x" * 300, "File name too long"),
        ("in.jsonl", "is the input; the output must be another file"),
    ],
)
def test_an_output_in_an_impossible_place_is_one_sentence(
    source: Path, tmp_path: Path, output: str, sentence: str
) -> None:
    with pytest.raises(CannotWrite, match=sentence):
        run_batch(source, tmp_path / output, StubAnswers())


def test_a_missing_input_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="none.jsonl cannot be read: No such file or directory"):
        run_batch(tmp_path / "none.jsonl", tmp_path / "out.jsonl", StubAnswers())


class FailingAnswers(StubAnswers):
    """The whole system goes away after some questions."""

    async def think(self, words: Words) -> Completion:
        if self.num_asked > 30:
            raise Unavailable("genserve.requests.requests-0 does not answer")
        return await super().think(words)


def test_a_system_that_goes_away_ends_the_batch_and_fails_no_line(source: Path, tmp_path: Path) -> None:
    run_batch(source, tmp_path / "whole.jsonl", StubAnswers())
    with pytest.raises(Unavailable):
        run_batch(source, tmp_path / "out.jsonl", FailingAnswers())
    assert len(written(tmp_path / "out.jsonl")) >= 20
    run_batch(source, tmp_path / "out.jsonl", StubAnswers())
    assert by_line(tmp_path / "out.jsonl") == by_line(tmp_path / "whole.jsonl")
    assert by_line(tmp_path / "out.errors.jsonl") == by_line(tmp_path / "whole.errors.jsonl")


class StuckAnswers(StubAnswers):
    """The first question waits for all others."""

    async def think(self, words: Words) -> Completion:
        if words["prompt"] == "prompt 0":
            while self.num_asked < 2 or self.num_open > 1:
                await asyncio.sleep(0)
        return await super().think(words)


def test_reading_does_not_run_away_from_a_line_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.jobs.run.MAX_AHEAD", 10)
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": f"prompt {number}"} for number in range(COUNT)])
    run_batch(source, tmp_path / "out.jsonl", StuckAnswers())
    order = [line["line"] for line in written(tmp_path / "out.jsonl")]
    assert sorted(order) == list(range(1, COUNT + 1))
    assert order.index(1) <= 11
