"""`--inline`: a batch in one process, without Ray."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.batch_chaos import prompts, texts, tiny_model
from tests.batches import write_lines
from tests.ray_cluster import ROOT


def begin(*words: str) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "deploy.jobs.batch", *words, "--inline"]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)


def test_killed_in_the_middle_it_goes_on_to_the_texts_of_an_undisturbed_run(tmp_path: Path) -> None:
    model, source = tiny_model(tmp_path), write_lines(tmp_path / "in.jsonl", prompts(60, 48))
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    undisturbed = begin(str(source), str(whole), "--model", str(model))
    disturbed = begin(str(source), str(output), "--model", str(model), "--batch-size", "2")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not output.exists() or output.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    disturbed.kill()
    disturbed.wait()
    again = begin(str(source), str(output), "--model", str(model))
    assert undisturbed.wait(120) == again.wait(120) == 0
    assert texts(output) == texts(whole) and len(texts(whole)) == 60
