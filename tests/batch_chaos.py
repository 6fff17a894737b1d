"""A batch on a real cluster, disturbed: its model server killed, the batch itself killed, and started again."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.model_choice import ModelChoice
from actors.tokenizer_loading import make_tokenizer
from deploy.jobs.asked import asked_plainly
from deploy.jobs.inline_serving import inline
from deploy.jobs.openai_lines import OpenAILines
from engine.options import EngineOptions
from tests.batches import run_batch, written
from tests.ray_cluster import ROOT, Cluster
from tests.tiny import write_checkpoint
from tests.tiny_tokenizer import write_tokenizer

PATIENCE_SECONDS = 240.0
PAUSE_SECONDS = 2.0  # between two kills, however quick the machine: a system gives up after four in five seconds


@dataclass(frozen=True, slots=True)
class Disturbed:
    """What was done to a batch, and what it came to."""

    model_kills: int
    batch_kills: int
    exit_code: int
    seconds: float


def tiny_model(directory: Path) -> Path:
    return write_tokenizer(write_checkpoint(directory / "model", "qwen3", {"group_size": 32, "bits": 4}))


def prompts(count: int, max_tokens: int = 24) -> Iterator[dict[str, Any]]:
    """Greedy, seeded and unseeded lines, plain ones and OpenAI's; none ends before its last token."""
    for number in range(count):
        words = {"max_tokens": 4 + number % max_tokens, "ignore_eos": True}
        match number % 3:
            case 0:
                yield {"prompt": f"prompt {number}", "temperature": 1.0, **words}
            case 1:
                yield {"prompt": f"prompt {number}", "temperature": 0.9, "seed": number, "top_p": 0.9, **words}
            case 2:
                body = {"messages": [{"role": "user", "content": f"{number}"}], "temperature": 0, **words}
                yield {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def texts(output: Path) -> dict[Any, str]:
    """What was answered, by custom_id or line."""
    found = {}
    for line in written(output):
        name = line.get("custom_id") or line["line"]
        assert name not in found, "a line is answered once"
        found[name] = (
            line["response"]["body"]["choices"][0]["message"]["content"] if "response" in line else line["text"]
        )
    return found


def undisturbed(source: Path, output: Path, model: Path) -> dict[Any, str]:
    """What the bare engine answers, in this process."""
    choice = ModelChoice(str(model), EngineOptions(max_sequences=64))
    openai = OpenAILines(lambda: make_tokenizer(choice), (str(model),), (), time.time)
    with inline(choice) as served:
        run_batch(
            source,
            output,
            served.answers,
            max_in_flight=128,
            ask=lambda line: asked_plainly(line, {}) if line.url is None else openai.asked(line, {}),
        )
    return texts(output)


def begin(cluster: Cluster, source: Path, output: Path, model: Path) -> "subprocess.Popen[bytes]":
    # Few lines at a time, so that some are left whenever it is killed: all at once they would end at once.
    command = [sys.executable, "-m", "deploy.jobs.batch", str(source), str(output), "--model", str(model)]
    command += ["--batch-size", "16"]
    environment = cluster.environment | {"PYTHONPATH": python_path(cluster)}
    return subprocess.Popen([*command, "--address", cluster.address], cwd=ROOT, env=environment)


def python_path(cluster: Cluster) -> str:
    return ":".join(filter(None, [str(ROOT), cluster.environment.get("PYTHONPATH", "")]))


def disturbed(
    cluster: Cluster, source: Path, output: Path, model: Path, num_lines: int, model_kills: int, batch_kills: int
) -> Disturbed:
    """Kill at even distances through the lines, the batch itself in between; start it again whenever it was killed."""
    began, killed_models, killed_batches = time.monotonic(), 0, 0
    killed_at = began
    num_kills = model_kills + batch_kills
    goals = [num_lines * (number + 1) // (num_kills + 1) for number in range(num_kills)]
    batch_goals = set(goals[len(goals) // 2 :: max(1, len(goals) // max(1, batch_kills))][:batch_kills])
    killer = subprocess.Popen(
        [sys.executable, "-m", "tests.killer", cluster.address],
        cwd=ROOT,
        env=cluster.environment | {"PYTHONPATH": python_path(cluster)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert killer.stdin is not None and killer.stdout is not None
    assert killer.stdout.readline() == b"ready\n"
    batch = begin(cluster, source, output, model)
    try:
        for goal in goals:
            wait_for_lines(output, goal, batch)
            if goal in batch_goals:
                batch.send_signal(signal.SIGKILL)
                killed_batches += batch.wait() == -signal.SIGKILL
                batch = begin(cluster, source, output, model)
            else:
                batch.send_signal(signal.SIGSTOP)  # however long this takes, the batch has lines left then
                time.sleep(max(0.0, killed_at + PAUSE_SECONDS - time.monotonic()))
                killer.stdin.write(b"\n")
                killer.stdin.flush()
                killed_models += killer.stdout.readline().startswith(b"genserve")
                killed_at = time.monotonic()
                batch.send_signal(signal.SIGCONT)
        code = batch.wait(PATIENCE_SECONDS)
    finally:
        for process in (killer, batch):
            process.kill()
            process.wait()
        killer.stdin.close()
        killer.stdout.close()
    return Disturbed(killed_models, killed_batches, code, time.monotonic() - began)


def wait_for_lines(output: Path, count: int, batch: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not output.exists() or output.read_bytes().count(b"\n") < count:
        assert batch.poll() is None, f"the batch ended with {batch.returncode}"
        assert time.monotonic() < until, f"{count} lines were not answered in time"
        time.sleep(0.02)
