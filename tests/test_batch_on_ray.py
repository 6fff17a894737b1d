"""Batches on a cluster that asks for a token: on a system of their own, as jobs, and killed."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from urllib.error import HTTPError

import pytest

from engine.kernels.cpu import missing_reason
from tests.batch_chaos import Disturbed, disturbed, prompts, texts, tiny_model, undisturbed
from tests.batches import write_lines
from tests.ray_cluster import ROOT, Cluster, free_ports

pytestmark = pytest.mark.ray
MODULE = ("python", "-m", "deploy.jobs.batch")
NUM_LINES = 400
KERNELS = "from engine.kernels.cpu import missing_reason; print('kernels:', missing_reason())"


@pytest.fixture
def jobs(cluster: Cluster) -> Cluster:
    """The cluster, for tests that need its job server."""
    pytest.importorskip("aiohttp_cors", reason="the job server needs `pip install ray[default]`")
    return cluster


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def batch(cluster: Cluster, *words: str) -> "subprocess.CompletedProcess[str]":
    command, there = [sys.executable, *MODULE[1:], *words], cluster.environment | {"RAY_ADDRESS": cluster.address}
    return subprocess.run(command, cwd=ROOT, env=there, capture_output=True, text=True, timeout=300)


@contextmanager
def another_version(cluster: Cluster) -> Iterator[None]:
    """The cluster says that it runs another Ray."""
    command, pipes = [sys.executable, "-m", "tests.other_version", cluster.address], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdin=pipes, stdout=pipes) as speaker:
        assert speaker.stdout is not None
        while speaker.stdout.readline() != b"ready\n":
            assert speaker.poll() is None
        yield


def last(done: "subprocess.CompletedProcess[str]") -> str:
    return done.stderr.strip().splitlines()[-1]


def test_what_is_not_there_is_told_in_a_sentence(cluster: Cluster, tmp_path: Path) -> None:
    source, (port,) = write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}]), free_ports(1)
    files, address = (str(source), str(tmp_path / "out.jsonl")), f"127.0.0.1:{port}"
    no_system = batch(cluster, *files, "--connect")
    assert (no_system.returncode, last(no_system)[20:]) == (2, "no system is running here")
    no_cluster = batch(cluster, *files, "--connect", "--address", address)
    assert (no_cluster.returncode, last(no_cluster)[20:]) == (2, f"no Ray answers at {address}")
    with another_version(cluster):
        other = batch(cluster, *files, "--connect", "--address", cluster.address)
    assert other.returncode == 2
    assert f"another version runs at {cluster.address}: there Ray 2.41.0, Python 3." in last(other)
    assert "; here Ray 2.60.0, Python 3." in last(other)


@dataclass(frozen=True, slots=True)
class Finished:
    """A batch whose model and whose program were killed on the way, and that came to its end."""

    source: Path
    output: Path
    came_to: Disturbed


@pytest.fixture(scope="module")
def finished(cluster: Cluster, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("disturbed")
    source, output = write_lines(directory / "in.jsonl", prompts(240)), directory / "out.jsonl"
    return Finished(source, output, disturbed(cluster, source, output, model, 240, model_kills=1, batch_kills=1))


def test_model_and_batch_are_killed_and_every_line_has_its_one_right_answer(
    finished: Finished, model: Path, tmp_path: Path
) -> None:
    came_to, expected = finished.came_to, undisturbed(finished.source, tmp_path / "undisturbed.jsonl", model)
    assert (came_to.model_kills, came_to.batch_kills, came_to.exit_code) == (1, 1, 0)
    assert len(expected) == 240
    assert texts(finished.output) == expected


def test_the_job_server_lets_nobody_in_without_the_token(jobs: Cluster) -> None:
    with pytest.raises(HTTPError, match="40[13]"):
        Cluster(jobs.address, jobs.dashboard, "0" * 64).ask("/api/jobs/")


def test_a_stopped_job_ends_cleanly_and_a_second_submission_goes_on(jobs: Cluster, model: Path, tmp_path: Path) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", prompts(NUM_LINES, 60)), tmp_path / "out.jsonl"
    command = (*MODULE, str(source), str(output), "--model", str(model))
    stopped, again_id = (f"{name}-{token_hex(4)}" for name in ("stopped", "again"))  # another try is another job
    begun = jobs.submit(*command, submission_id=stopped)
    assert begun.returncode == 0, begun.stderr
    wait_for(lambda: (output.exists() and output.read_bytes().count(b"\n") > 50) or has_ended(jobs, stopped))
    assert not has_ended(jobs, stopped), jobs.logs(stopped)
    jobs.ask(f"/api/jobs/{stopped}/stop", "POST")  # `ray job stop`, without the time that a command takes to start
    assert end_of(jobs, stopped)["status"] == "STOPPED"
    assert "lines are done; the same command goes on" in jobs.logs(stopped)
    assert 50 < output.read_bytes().count(b"\n") < NUM_LINES
    jobs.start(" ".join(command), submission_id=again_id)
    assert end_of(jobs, again_id)["status"] == "SUCCEEDED", jobs.logs(again_id)
    assert "lines that are done" in jobs.logs(again_id)
    assert f"{NUM_LINES} lines answered in {output}" in jobs.logs(again_id)
    assert texts(output) == undisturbed(source, tmp_path / "undisturbed.jsonl", model)


def test_a_job_that_can_do_nothing_fails_with_the_reason_in_its_log(jobs: Cluster, tmp_path: Path) -> None:
    failed = f"nothing-{token_hex(4)}"
    nothing = f"python -m deploy.jobs.batch /nowhere/in.jsonl {tmp_path / 'other.jsonl'}"
    jobs.start(f'python -c "{KERNELS}" && {nothing}', submission_id=failed)
    job = end_of(jobs, failed)
    assert (job["status"], job["driver_exit_code"]) == ("FAILED", 2)
    assert "/nowhere/in.jsonl cannot be read: No such file or directory" in jobs.logs(failed)
    assert f"kernels: {missing_reason()}" in jobs.logs(failed), "a job is as quick as what is installed"


def has_ended(jobs: Cluster, submission_id: str) -> bool:
    return jobs.ask(f"/api/jobs/{submission_id}")["status"] not in ("PENDING", "RUNNING")


def end_of(jobs: Cluster, submission_id: str) -> dict[str, object]:
    wait_for(lambda: has_ended(jobs, submission_id))
    return jobs.ask(f"/api/jobs/{submission_id}")


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.1)  # each look is a question to the cluster
