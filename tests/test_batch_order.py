"""deploy/jobs/order.py, meter.py, carrying_out.py, cli/batch.py: what a batch is told, and what it tells."""

import argparse
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from actors.model_choice import ModelChoice
from deploy.cli.main import main
from deploy.jobs.book import Book, Places
from deploy.jobs.carrying_out import name_of
from deploy.jobs.input_file import survey
from deploy.jobs.meter import Meter, duration
from deploy.jobs.order import Order, add_arguments, order_of, settings_of
from engine.completion import Usage
from engine.refusal import BadRequest
from loaders.adapters import save_adapter
from loaders.checkpoint import load_model
from loaders.made_up import made_up_adapter
from loaders.progress import ignore_progress
from tests.batch_chaos import tiny_model
from tests.batches import write_lines

ROOT = Path(__file__).parent.parent


def order(*words: str) -> Order:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return order_of(parser.parse_args(["in.jsonl", "some/out.jsonl", *words]))


def test_everything_is_written_beside_the_output() -> None:
    places = order().places
    assert str(places.errors) == "some/out.errors.jsonl"
    assert str(places.progress) == "some/out.jsonl.progress"


def test_a_batch_goes_on_with_the_system_of_an_earlier_start_only_if_that_is_the_same_one(tmp_path: Path) -> None:
    source = survey(write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}]))
    names = [
        name_of(order(*words), source, ModelChoice(model, adapters=adapters))
        for words, model, adapters in (
            ((), "/models/a", ()),
            ((), "/models/b", ()),
            ((), "/models/a", (("v", "/adapters/v"),)),
            (("--max-tokens", "5"), "/models/a", ()),
        )
    ]
    assert len(set(names)) == len(names)
    assert names[0] == name_of(order(), source, ModelChoice("/models/a"))


def test_twice_as_much_is_asked_as_is_worked_on() -> None:
    assert order("--batch-size", "8").max_in_flight == 16
    assert order("--batch-size", "1000").limits.max_choices_on_board == 2000


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--connect", "--model", "x"), "with --connect the model and the adapters are those of the system that runs"),
        (("--adapter", "x"), "an adapter is given as NAME=PATH; got 'x'"),
        (("--max-tokens", "0"), "max-tokens must be a whole number from 1"),
        (("--temperature", "-1"), "temperature must be a number from 0"),
        (("--batch-size", "0"), "batch-size must be a whole number from 1"),
    ],
)
def test_bad_options_get_a_sentence(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        order(*words)


def test_a_model_is_told_by_a_place_that_means_the_same_in_every_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    choice = order("--model", "./model", "--adapter", "red=./red").choice(ignore_progress)
    assert choice.source == str(tmp_path / "model")
    assert choice.adapters == (("red", str(tmp_path / "red")),)


def test_an_adapter_cannot_be_called_as_the_model_is(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    with pytest.raises(BadRequest, match="'tiny' is the model's name"):
        order("--model", str(tmp_path / "tiny"), "--adapter", "tiny=red").choice(ignore_progress)


def test_settings_are_what_texts_depend_on_and_nothing_else() -> None:
    choice = ModelChoice("model", adapters=(("red", "/red"),))
    assert settings_of(order("--batch-size", "3"), choice) == settings_of(order(), choice)
    others = [
        settings_of(order("--max-tokens", "3"), choice),
        settings_of(order("--temperature", "0"), choice),
        settings_of(order(), ModelChoice("model")),
        settings_of(order(), ModelChoice("other", adapters=choice.adapters)),
    ]
    assert len({settings_of(order(), choice), *others}) == 5


def test_the_meter_counts_from_this_start_on(tmp_path: Path) -> None:
    source = survey(write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}] * 100))
    with closing(Book(Places(tmp_path / "out.jsonl"), source, "")) as book:
        book.answered(1, b"{}\n", Usage(5, 1000))
        meter = Meter(source.num_lines, book, now=10.0)
        assert str(meter.figures(11.0)) == "1 of 100 lines, 0 tokens/s"
        book.answered(2, b"{}\n", Usage(5, 50))
        book.failed(3, b"{}\n")
        assert str(meter.figures(20.0)) == "3 of 100 lines, 1 failed, 5 tokens/s, 8 min 5 s left"


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min")])
def test_durations_are_said_in_two_parts(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_missing_input_is_one_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", str(tmp_path / "none.jsonl"), str(tmp_path / "out.jsonl")]) == 2
    assert capsys.readouterr().err == (f"genserve: {tmp_path}/none.jsonl cannot be read: No such file or directory\n")


def test_an_input_that_cannot_be_read_twice_is_refused_before_it_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link.jsonl"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/null"), tmp_path):
        assert main(["batch", str(path), str(tmp_path / "out.jsonl"), "--inline"]) == 2
        sentence = capsys.readouterr().err
        assert sentence.startswith(f"genserve: {path} is no regular file; ") and sentence.count("\n") == 1


def test_a_pipe_is_refused_and_a_redirected_file_is_taken(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}])
    program = "import pathlib, deploy.jobs.input_file as it; print(it.survey(pathlib.Path('/dev/stdin')).num_lines)"
    command = [sys.executable, "-c", program]
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, input=source.read_text())
    assert "/dev/stdin is no regular file" in piped.stderr
    with source.open() as file:
        assert subprocess.run(command, cwd=ROOT, stdin=file, capture_output=True, text=True).stdout == "1\n"


def test_the_program_of_a_job_says_it_the_same_way(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.jobs.batch", str(tmp_path / "none.jsonl"), str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith(f"{tmp_path}/none.jsonl cannot be read: No such file or directory\n")


def test_an_output_that_cannot_be_written_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}])
    model = tmp_path / "model"
    model.mkdir()
    assert main(["batch", str(source), "/proc/nothing/out.jsonl", "--model", str(model)]) == 2
    assert "/proc/nothing/out.jsonl cannot be written" in capsys.readouterr().err


def test_an_output_that_is_no_file_is_refused_and_nothing_is_made_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, pipe, model = write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}]), tmp_path / "pipe", tmp_path / "model"
    model.mkdir()
    os.mkfifo(pipe)
    assert main(["batch", str(source), str(pipe), "--inline", "--model", str(model)]) == 2
    sentence = f"genserve: {pipe} is no regular file; a batch writes to one, in which it can go on\n"
    assert capsys.readouterr().err == sentence
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "model", "pipe"}


def test_a_batch_that_could_not_start_is_begun_with_what_was_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, source = tiny_model(tmp_path), write_lines(tmp_path / "in.jsonl", [{"prompt": "x", "adapter": "v"}])
    save_adapter(tmp_path / "voice", made_up_adapter(load_model(model).config, 4, seed=1))
    words = ["batch", str(source), str(tmp_path / "out.jsonl"), "--inline", "--model", str(model), "--max-tokens", "4"]
    assert main([*words, "--adapter", "v=nowhere"]) == 2
    assert "nowhere is no adapter" in capsys.readouterr().err
    assert main([*words, "--adapter", f"v={tmp_path / 'voice'}"]) == 0
