"""`genserve serve` and the commands beside it, each a program of its own, and programs that know only Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import deploy.cli.serve
from tests.batch_chaos import prompts, texts, undisturbed
from tests.batches import by_line, write_lines
from tests.ray_cluster import free_ports
from tests.tiny import write_checkpoint
from tests.tiny_tokenizer import write_tokenizer

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parent.parent
WAIT_SECONDS = 120.0

PLAIN_RAY = """
import json, ray
ray.init(logging_level="error", log_to_driver=False)
genserve = ray.get_actor("genserve", namespace="genserve")
words = dict(prompt="Once", max_tokens=12, temperature=0, ignore_eos=True)
whole = ray.get(genserve.generate.remote(id="whole", **words))
pieces = [ray.get(piece) for piece in genserve.stream.remote(id="parts", **words)]
both = ray.get(genserve.batch.remote([words, {"prompt": "Twice"}]))
ended = ray.get(genserve.cancel.remote("whole"))
try:
    ray.get(genserve.generate.remote(prompt="Once", temperature=-1))
except Exception as error:
    trouble = str(error).strip().splitlines()[-1]
stats = ray.get(genserve.stats.remote())
print(json.dumps([whole, pieces, both, ended, trouble, len(stats)]))
"""

LONG_REQUEST = """
import json, ray
ray.init(logging_level="error", log_to_driver=False)
genserve = ray.get_actor("genserve", namespace="genserve")
answer = genserve.generate.remote(prompt="Once", n=8, max_tokens=300, ignore_eos=True)
while not any(found["num_living"] for found in ray.get(genserve.stats.remote())):
    pass
print("accepted", flush=True)
print(json.dumps(ray.get(answer)))
"""


@dataclass
class Serve:
    """A running `genserve serve`, and other programs of the same user."""

    home: Path
    model: Path
    process: "subprocess.Popen[str]" = field(init=False)
    port: int = field(init=False)

    def __post_init__(self) -> None:
        (self.port,) = free_ports(1)
        words = ("--model", self.model, "--directory", self.home / "state", "--port", self.port, "--partitions", 2)
        command = [sys.executable, "-m", "deploy.cli.main", "serve", *map(str, words)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=self.environment, start_new_session=True
        )
        assert self.process.stderr is not None
        assert "genserve is running" in self.process.stderr.readline()

    @property
    def environment(self) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
        return others | {"HOME": str(self.home), "PYTHONPATH": str(ROOT)}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deploy.cli.main", *words]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=self.environment, timeout=WAIT_SECONDS
        )

    def status(self) -> Any:
        found = self.run("status", "--json")
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    @property
    def address(self) -> str:
        """Of its Ray."""
        (note,) = (self.home / ".genserve" / "running").iterdir()
        return note.name

    def start_plain_ray(self, *words: str) -> "subprocess.Popen[str]":
        """A program that imports nothing of ours."""
        environment = {name: value for name, value in self.environment.items() if name != "PYTHONPATH"}
        signed = environment | {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": self.address}
        command = [sys.executable, *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=self.home, env=signed)


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    home = tmp_path_factory.mktemp("home")
    write_checkpoint(home / "model", "llama", {"group_size": 32, "bits": 4})
    started = Serve(home, write_tokenizer(home / "model"))
    with started.process:
        yield started
        started.process.kill()


def by_id(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["id"]: node} | {name: each for child in node["children"] for name, each in by_id(child).items()}


def test_status_shows_the_tree_with_what_each_process_does(serve: Serve) -> None:
    root = serve.status()
    assert [child["id"] for child in root["children"]] == [
        "registry",
        "models",
        "requests",
        "http",
        "handle",
        "watchdog",
    ]
    nodes = by_id(root)
    for node in nodes.values():
        assert set(node) == {"id", "pid", "state", "restarts", "last_reason", "children", "process_id", "stats"}
        assert (node["state"], node["restarts"], node["last_reason"]) == ("running", 0, None)
        assert Path(f"/proc/{node['process_id']}").exists()
    assert nodes["requests-1"]["stats"]["num_living"] == 0
    assert nodes["model-0"]["stats"]["engine"]["num_running"] == 0


def test_a_killed_model_server_is_seen_in_the_tree_and_replaced(serve: Serve) -> None:
    before = by_id(serve.status())["model-0"]
    killed = serve.run("chaos", "kill", "model")
    assert (killed.returncode, killed.stdout) == (0, f"killed {before['pid']}\n")
    until = time.monotonic() + WAIT_SECONDS
    while (after := by_id(serve.status())["model-0"])["restarts"] == 0:
        assert time.monotonic() < until
    assert (after["restarts"], after["last_reason"]) == (1, "killed")
    assert (after["pid"], after["process_id"]) != (before["pid"], before["process_id"])


def test_a_second_system_on_the_same_journals_or_port_is_refused_in_a_sentence(serve: Serve) -> None:
    words = ("serve", "--model", str(serve.model), "--directory", str(serve.home / "state"))
    twice = serve.run(*words, "--port", str(serve.port))
    assert (twice.returncode, twice.stdout) == (2, "")
    assert f"port {serve.port} of 127.0.0.1 cannot be had" in twice.stderr
    (port,) = free_ports(1)
    twice = serve.run(*words, "--port", str(port))
    assert twice.returncode == 2
    assert "belongs to another process, pid" in twice.stderr


def test_a_program_that_knows_only_ray_gets_plain_dicts(serve: Serve) -> None:
    said, _ = serve.start_plain_ray("-c", PLAIN_RAY).communicate(timeout=WAIT_SECONDS)
    whole, pieces, both, ended, trouble, partitions = json.loads(said)
    assert set(whole) == {"id", "text", "tokens", "finish_reason", "usage"}
    assert (whole["id"], len(whole["tokens"]), whole["finish_reason"]) == ("whole", 12, "length")
    assert whole["usage"]["completion_tokens"] == 12
    assert [piece["position"] for piece in pieces] == list(range(12))
    assert "".join(piece["text"] for piece in pieces) == whole["text"]
    assert [token for piece in pieces for token in piece["tokens"]] == whole["tokens"]
    assert [piece.get("finish_reason") for piece in pieces] == [None] * 11 + ["length"]
    assert {piece["id"] for piece in pieces} == {"parts"}
    assert (both[0]["tokens"], len(both), ended, partitions) == (whole["tokens"], 2, False, 2)
    assert "bad_request: temperature must be a number from 0 to 100" in trouble


def test_post_uses_the_system_that_runs(serve: Serve) -> None:
    posted = serve.run("post", "about rain", "-n", "2", "--connect", "--json", "--seed", "1", "--max-tokens", "20")
    assert posted.returncode == 0, posted.stderr
    assert len([json.loads(line) for line in posted.stdout.splitlines()]) == 2


def test_the_example_that_knows_only_ray_runs_beside_a_system(serve: Serve) -> None:
    said, _ = serve.start_plain_ray(str(ROOT / "examples" / "plain_ray.py")).communicate(timeout=WAIT_SECONDS)
    assert "streamed, it is the same text" in said
    assert "8 answers to one batch" in said
    assert "unknown_adapter: no adapter 'nobody' is attached; attached are none" in said


def test_a_batch_uses_the_system_that_runs_and_leaves_it(serve: Serve, tmp_path: Path) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", [*prompts(60), "{broken"]), tmp_path / "out.jsonl"
    done = serve.run("batch", str(source), str(output), "--connect")
    assert done.returncode == 1, f"one line has no answer; {done.stderr}"
    assert texts(output) == undisturbed(source, tmp_path / "undisturbed.jsonl", serve.model)
    assert set(by_line(tmp_path / "out.errors.jsonl")) == {61}
    words = ("--model", str(serve.model), "--address", serve.address)
    refused = serve.run("batch", str(source), str(tmp_path / "other.jsonl"), *words)
    assert refused.returncode == 2
    said = "a system runs here already: use it with --connect, or end it with `genserve stop`"
    assert refused.stderr.strip().endswith(said)
    assert serve.process.poll() is None, "it is left running"


def test_an_interrupt_gives_the_answers_that_were_promised_and_then_nothing_runs(serve: Serve) -> None:
    client = serve.start_plain_ray("-c", LONG_REQUEST)
    assert client.stdout is not None and client.stdout.readline() == "accepted\n"
    serve.process.send_signal(signal.SIGINT)
    answer, _ = client.communicate(timeout=WAIT_SECONDS)
    assert [len(choice["tokens"]) for choice in json.loads(answer)["choices"]] == [300] * 8
    assert serve.process.wait(WAIT_SECONDS) == 0
    nothing = serve.run("status", "--address", "auto")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "nothing runs" in nothing.stderr


def test_signalled_together_with_its_ray_it_does_not_wait_for_that_and_nor_does_who_uses_it(
    serve: Serve, tmp_path: Path
) -> None:
    lines = [{"prompt": f"{number}", "max_tokens": 400, "ignore_eos": True} for number in range(2000)]
    files = (str(write_lines(tmp_path / "in.jsonl", lines)), str(tmp_path / "out.jsonl"))
    command = [sys.executable, "-m", "deploy.cli.main", "batch", *files, "--connect"]
    ours = Serve(tmp_path, serve.model)
    with (
        ours.process as process,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ours.environment) as user,
    ):
        assert process.stderr is not None and process.stderr.readline().startswith("Ctrl-C ends it")
        while not Path(files[1]).exists() or not Path(files[1]).read_bytes():
            assert user.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(20) == 0
        assert "its Ray has died; what was accepted is in the journal" in process.stderr.read()
        assert user.wait(20) == 2
        assert user.stderr is not None
        assert "the Ray that this batch is on has died; the same command goes on" in user.stderr.read()


def test_a_model_and_an_adapter_that_cannot_be_read_are_said_to_be(tmp_path: Path) -> None:
    model, (port,) = write_checkpoint(tmp_path / "model", "llama", {"group_size": 32, "bits": 4}), free_ports(1)
    for words, sentence in (
        ((), f"{model} has no tokenizer.json"),
        (("--adapter", "x=no"), f"{ROOT / 'no'} is no adapter"),
    ):
        command = [sys.executable, "-m", "deploy.cli.main", "serve", "--model", str(model), "--port", str(port), *words]
        environment = {**os.environ, "HOME": str(tmp_path)}
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=WAIT_SECONDS)
        assert ended.returncode == 2
        assert ended.stderr.strip().splitlines()[-1].startswith(f"genserve: {sentence}"), ended.stderr


def test_a_second_interrupt_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = []
    monkeypatch.setattr(deploy.cli.serve, "stop", lambda: stopped.append(True))

    class Impatient:
        def drain(self) -> None:
            raise KeyboardInterrupt

    deploy.cli.serve.end(Impatient())  # type: ignore[arg-type]
    assert stopped == [True]
