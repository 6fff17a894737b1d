"""deploy/cli/streams.py: what becomes of a command whose output, or whose stderr, has no place to go."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from deploy.cli.main import main
from deploy.cli.streams import watched_streams
from tests.batches import write_lines, written
from tests.ray_cluster import ROOT
from tests.tiny import write_checkpoint
from tests.tiny_tokenizer import write_tokenizer

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="only Linux has a file that is always full")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("tiny"), "llama")))


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        yield stream


@pytest.fixture
def full() -> Iterator[TextIO]:
    with FULL.open("w") as stream:
        yield stream


@pytest.mark.parametrize("broken", ["unread", pytest.param("full", marks=needs_full)])
def test_a_batch_needs_no_stderr(
    broken: str, model: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", request.getfixturevalue(broken))
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "x", "max_tokens": 2}, {"prompt": 5}])
    assert main(["batch", str(source), str(tmp_path / "out.jsonl"), "--inline", "--model", model]) == 1
    assert len(written(tmp_path / "out.jsonl")) == len(written(tmp_path / "out.errors.jsonl")) == 1
    assert main(["batch", str(source), str(tmp_path / "out.jsonl"), "--batch-size", "0"]) == 2


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_failure(
    form: list[str], model: str, unread: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", unread)
    assert main(["inspect", model, *form]) == 0


@needs_full
def test_an_output_that_cannot_be_written_is_one_sentence(
    model: str, full: TextIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", full)
    assert main(["inspect", model]) == 2
    assert capsys.readouterr().err == "genserve: the output cannot be written: No space left on device\n"


@needs_full
def test_what_python_would_write_as_it_ends_is_told_too(full: TextIO) -> None:
    command = [sys.executable, "-m", "deploy.cli.main", "--help"]
    ended = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)


def test_a_letter_that_the_terminal_does_not_have_is_shown_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    with watched_streams():
        print("🌟 café", flush=True)
    assert shown.getvalue() == b"\\U0001f31f caf\\xe9\n"


def test_json_is_json_in_every_encoding(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def text(encoding: str) -> str:
        shown = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding))
        assert main(["post", "x", "--json", "--model", model, "--seed", "1", "--max-tokens", "40"]) == 0
        return str(json.loads(shown.getvalue().decode(encoding))["text"])

    assert text("ascii") == text("utf-8") and not text("utf-8").isascii()
