"""examples/: each runs from its first line to its last, on a tiny model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.batch_chaos import tiny_model
from tests.ray_cluster import ROOT

EXAMPLES = {"inline", "two_adapters", "batch_file", "surviving_a_kill"}
ELSEWHERE = {"plain_ray"}  # in test_serve_system.py, beside a system that runs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def run(name: str, *words: str) -> str:
    """What an example prints. It starts a Ray of its own where it needs one."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == EXAMPLES | ELSEWHERE


def test_inline_generation(model: Path) -> None:
    assert "3 answers in one batch, the first as before" in run("inline", str(model))


@pytest.mark.model
def test_inline_generation_with_the_default_model() -> None:
    assert "3 answers in one batch, the first as before" in run("inline")


@pytest.mark.ray
def test_surviving_a_kill(model: Path) -> None:
    assert "80 tokens, each as undisturbed" in run("surviving_a_kill", str(model))


@pytest.mark.ray
def test_two_adapters_in_one_batch(model: Path) -> None:
    said = run("two_adapters", str(model))
    assert "formal: " in said and "casual: " in said and "neither: " in said
    assert "no adapter 'rude' is attached; attached are casual, formal" in said


@pytest.mark.ray
def test_a_batch_file(model: Path) -> None:
    said = run("batch_file", str(model))
    assert said.count("count-") == 4 and "line 9 failed: there is no field 'temprature'" in said
