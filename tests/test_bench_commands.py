"""Benchmarks without what they measure: their command lines, and what a figure is a part of."""

import argparse
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import cuda, load, memory
from benchmarks.command_line import at_least, told_in_a_sentence
from benchmarks.cuda_models import Rates, made_up
from deploy.bench.workload import Range
from engine.config import ModelConfig
from engine.refusal import BadRequest, UnknownModel


@pytest.mark.parametrize(("low", "text"), [(1, "0"), (0, "-1"), (0.1, "nan"), (0.0, "inf")])
def test_a_number_out_of_its_bounds_is_refused(low: float, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"{low} at least is wanted"):
        at_least(low)(text)


def test_numbers_are_of_the_kind_of_their_bound() -> None:
    assert (at_least(1)("3"), at_least(0.0)("3")) == (3, 3.0)
    with pytest.raises(ValueError, match="invalid literal"):
        at_least(1)("3.5")


def test_a_refusal_is_a_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending, told_in_a_sentence():
        raise UnknownModel("there is no such model")
    assert ending.value.code == 2
    assert capsys.readouterr().err == "there is no such model\n"


@pytest.mark.parametrize(
    ("main", "words", "sentence"),
    [
        (memory.main, ["--tokens", "0"], "1 at least is wanted"),
        (memory.main, ["--model", "nobody"], "'nobody' is no directory"),
        (load.main, ["--measure", "nobody"], "'nobody' is no directory"),
        (cuda.main, ["nothing"], "nothing: no part"),
    ],
)
def test_bad_words_end_a_benchmark_with_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, main: object, words: list[str], sentence: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    with pytest.raises(SystemExit) as ending:
        main()  # type: ignore[operator]
    assert ending.value.code == 2 and sentence in capsys.readouterr().err


def test_a_part_that_takes_too_long_leaves_no_process(tmp_path: Path) -> None:
    place = tmp_path / "child"
    script = f"sleep 60 & echo $! > {place}.new && mv {place}.new {place}; wait"
    assert cuda.ended(["sh", "-c", script], 0.3) is None
    child = int(place.read_text())
    until = time.monotonic() + 5
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(child)


def is_running(number: int) -> bool:
    """Whether there is such a process, and not only what is left of it."""
    try:
        os.kill(number, 0)
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_prompts_part_of_the_matrix_rate_is_without_the_head(
    capsys: pytest.CaptureFixture[str], is_tied: bool
) -> None:
    model = made_up(ModelConfig("llama", 4096, 64, 128, 2, 1, 1, 64, 1e-5, 1e4, 64, is_tied))
    parameters = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    cuda.line("tiny", Rates(10.0, 1.0, 1.0), model, 1, cuda.Machine(1.0, 2 * parameters * 10.0))
    assert capsys.readouterr().out.split()[-1] == "100%"


def test_a_range_of_tokens_ends_before_numbers_become_too_large() -> None:
    assert Range.parse("1:1000000", "output-tokens").high == 1_000_000
    with pytest.raises(BadRequest, match="at most 1000000"):
        Range.parse("99999999999999999999", "output-tokens")
