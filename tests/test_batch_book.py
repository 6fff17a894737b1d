"""deploy/jobs/book.py, output_file.py, input_file.py: what is not the batch's own, and an input that changes."""

import itertools
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from deploy.jobs.asked import Words
from deploy.jobs.book import Book, Places
from deploy.jobs.input_file import InputFile, survey
from deploy.jobs.troubles import ChangedInput, OutputTaken
from engine.completion import Completion, Usage
from engine.refusal import BrokenFile
from tests.batches import StubAnswers, by_line, run_batch, write_lines

COUNT = 30


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Good lines, and one that is broken."""
    prompts = [{"prompt": f"prompt {number}"} for number in range(COUNT - 1)]
    return write_lines(tmp_path / "in.jsonl", ["{broken", *prompts])


def test_an_output_that_somebody_else_changed_is_not_gone_on_with(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run_batch(source, output, StubAnswers())
    good = output.read_bytes()
    output.write_bytes(good[:-3])
    with pytest.raises(BrokenFile, match="its progress record vouches for"):
        run_batch(source, output, StubAnswers())
    output.write_bytes(b"X" + good[1:])
    with pytest.raises(BrokenFile, match="was changed since it was written"):
        run_batch(source, output, StubAnswers())
    output.unlink()
    with pytest.raises(BrokenFile, match="is gone"):
        run_batch(source, output, StubAnswers())
    assert not output.exists()
    output.write_bytes(good)
    assert run_batch(source, output, StubAnswers()).is_complete


def shrunk(source: Path) -> None:
    source.write_bytes(b"".join(source.read_bytes().splitlines(keepends=True)[:4]))


def grown(source: Path) -> None:
    with source.open("a") as file:
        file.write('{"prompt": "one more"}\n')


def replaced(source: Path) -> None:
    """By as many bytes and lines."""
    other = source.with_name("other.jsonl")
    other.write_bytes(source.read_bytes().replace(b"prompt 5", b"PROMPT 5"))
    other.replace(source)


def touched(source: Path) -> None:
    other = source.with_name("other.jsonl")
    shutil.copy(source, other)
    other.replace(source)


def changing(monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]) -> None:
    """Whatever is surveyed has changed by the time that its lines are read."""

    def survey_and_change(path: Path) -> InputFile:
        file = survey(path)
        change(path)
        return file

    monkeypatch.setattr("tests.batches.survey", survey_and_change)


@pytest.mark.parametrize("change", [shrunk, grown, replaced])
def test_an_input_that_changes_while_it_is_read_is_refused_and_nothing_of_it_is_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    run_batch(source, tmp_path / "whole.jsonl", StubAnswers())
    good, output = source.read_bytes(), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        changing(patch, change)
        with pytest.raises(ChangedInput, match="in.jsonl, the input, changed while it was read"):
            run_batch(source, output, StubAnswers())
    with pytest.raises(ChangedInput, match="the input changed since this batch was begun"):
        run_batch(source, output, StubAnswers())
    source.write_bytes(good)
    assert run_batch(source, output, StubAnswers()).is_complete
    assert by_line(output) == by_line(tmp_path / "whole.jsonl")


@pytest.mark.parametrize("change", [touched, Path.unlink])
def test_an_input_that_is_copied_over_itself_or_gone_is_no_changed_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    class ChangingAnswers(StubAnswers):
        async def think(self, words: Words) -> Completion:
            if self.num_asked == COUNT // 2:
                change(source)
            return await super().think(words)

    assert run_batch(source, tmp_path / "out.jsonl", ChangingAnswers(), now=itertools.count().__next__).is_complete
    assert set(by_line(tmp_path / "out.jsonl")) == set(range(2, COUNT + 1))


def test_with_a_line_missing_a_batch_is_not_complete(source: Path, tmp_path: Path) -> None:
    with closing(Book(Places(tmp_path / "out.jsonl"), survey(source), "")) as book:
        for number in range(1, COUNT):
            book.passed_over(number)
        with pytest.raises(ChangedInput, match="changed while it was read"):
            book.complete()
        book.passed_over(COUNT)
        book.complete()
        assert book.is_complete


def test_what_somebody_wrote_behind_a_complete_output_is_refused_and_stays(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run_batch(source, output, StubAnswers())
    for path in (output, tmp_path / "out.errors.jsonl"):
        good = path.read_bytes()
        path.write_bytes(good + b"precious\n")
        with pytest.raises(BrokenFile, match=f"{path.name} has .* bytes, .* somebody else wrote the others"):
            run_batch(source, output, StubAnswers())
        assert path.read_bytes() == good + b"precious\n"
        path.write_bytes(good)
    assert run_batch(source, output, StubAnswers()).is_complete


def test_an_error_file_that_is_not_the_batchs_stays(tmp_path: Path) -> None:
    source, errors = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}]), tmp_path / "out.errors.jsonl"
    run_batch(source, tmp_path / "out.jsonl", StubAnswers())
    errors.write_text("precious\n")
    with pytest.raises(BrokenFile, match="vouches for 0: somebody else wrote"):
        run_batch(source, tmp_path / "out.jsonl", StubAnswers())
    assert errors.read_text() == "precious\n"


def test_an_error_file_that_took_the_place_of_the_batchs_is_not_removed(source: Path, tmp_path: Path) -> None:
    with closing(Book(Places(tmp_path / "out.jsonl"), survey(source), "")):
        errors = tmp_path / "out.errors.jsonl"
        write_lines(tmp_path / "new", ["precious"]).replace(errors)
    assert errors.read_text() == "precious\n"


def test_an_output_that_is_the_error_file_of_another_batch_is_refused(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    run_batch(source, tmp_path / "out.jsonl", StubAnswers())
    with pytest.raises(OutputTaken, match="out.errors.jsonl is the error file of .*out.jsonl: name another output"):
        run_batch(source, tmp_path / "out.errors.jsonl", StubAnswers())
    assert run_batch(source, tmp_path / "new.errors.jsonl", StubAnswers()).is_complete


@pytest.mark.parametrize(("name", "link"), [("out.jsonl", "link.jsonl"), ("out.errors.jsonl", "link.errors.jsonl")])
def test_two_batches_do_not_share_a_file_by_two_names(source: Path, tmp_path: Path, name: str, link: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / link).symlink_to(tmp_path / name)
    with (
        closing(Book(Places(tmp_path / "out.jsonl"), survey(source), "")),
        pytest.raises(OutputTaken, match=f"another batch is at work on .*{link}"),
    ):
        Book(Places(tmp_path / "link.jsonl"), survey(source), "")


def test_a_file_that_no_batch_began_is_left_alone(source: Path, tmp_path: Path) -> None:
    output = write_lines(tmp_path / "out.jsonl", ["precious"])
    with pytest.raises(OutputTaken, match="exists and no batch has begun it"):
        run_batch(source, output, StubAnswers())
    assert output.read_text() == "precious\n"


def test_a_batch_of_which_nothing_is_done_is_begun_with_other_settings(source: Path, tmp_path: Path) -> None:
    """What the first ones have answered and nobody vouched for is not kept, and they are not gone back to."""
    output = tmp_path / "out.jsonl"
    with closing(Book(Places(output), survey(source), "first")) as book:
        book.answered(2, b"of the first\n", Usage(1, 1))
    with closing(Book(Places(output), survey(source), "second")) as book:
        assert not output.read_bytes() and not len(book.done)
        book.passed_over(1)
        book.vouch()
    with pytest.raises(ChangedInput, match=r"the settings changed since this batch was begun \(second then"):
        Book(Places(output), survey(source), "first")


def test_an_empty_batch_that_is_complete_keeps_its_settings(tmp_path: Path) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", []), tmp_path / "out.jsonl"
    assert run_batch(source, output, StubAnswers()).is_complete
    with pytest.raises(ChangedInput, match="the settings changed"):
        run_batch(source, output, StubAnswers(), settings="other")


def test_two_batches_do_not_share_an_output(source: Path, tmp_path: Path) -> None:
    book = Book(Places(tmp_path / "out.jsonl"), survey(source), "")
    with pytest.raises(OutputTaken, match=f"another batch is at work here: .*pid {os.getpid()}"):
        run_batch(source, tmp_path / "out.jsonl", StubAnswers())
    book.close()
