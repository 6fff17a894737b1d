"""`genserve batch` on real Rays: one of its own, one that is there, none at all, and one of another version."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch_chaos import prompts, texts, tiny_model, undisturbed
from tests.batches import by_line, write_lines
from tests.ray_cluster import ROOT, Cluster, free_ports, served, started_cluster

pytestmark = pytest.mark.ray
NUM_LINES = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with started_cluster(has_jobs=False) as started:
        yield started


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def run(cluster: Cluster | None, module: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """`python -m module words`, in the cluster's environment if there is one."""
    environment = None if cluster is None else cluster.environment
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def batch(cluster: Cluster | None, *words: str) -> "subprocess.CompletedProcess[str]":
    return run(cluster, "deploy.jobs.batch", *words)


def last(done: "subprocess.CompletedProcess[str]") -> str:
    return done.stderr.strip().splitlines()[-1]


def test_without_a_cluster_it_starts_a_system_of_its_own_and_ends_it(model: Path, tmp_path: Path) -> None:
    lines = [*prompts(NUM_LINES), "{broken", {"prompt": "x", "adapter": "green"}]
    source, output = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    done = batch(None, str(source), str(output), "--model", str(model))
    assert done.returncode == 1, done.stderr
    assert "60 lines answered" in done.stderr and "2 failed, see" in done.stderr
    assert texts(output) == undisturbed(source, tmp_path / "undisturbed.jsonl", model)
    assert {number: line["error"]["code"] for number, line in by_line(tmp_path / "out.errors.jsonl").items()} == {
        NUM_LINES + 1: "bad_request",
        NUM_LINES + 2: "unknown_adapter",
    }


def test_it_asks_a_system_that_runs_and_leaves_it_running(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", prompts(NUM_LINES)), tmp_path / "out.jsonl"
    other, there = str(tmp_path / "other.jsonl"), ("--address", cluster.address)
    with served(cluster, model, tmp_path) as server:
        done = batch(cluster, str(source), str(output), "--connect", *there)
        refused = batch(cluster, str(source), other, "--model", str(model), *there)
        assert server.poll() is None
    assert done.returncode == 0, done.stderr
    assert texts(output) == undisturbed(source, tmp_path / "undisturbed.jsonl", model)
    assert refused.returncode == 2
    assert last(refused).endswith("a system runs here already: use it with --connect, or end it with `genserve stop`")
    assert server.returncode == 0


def test_where_no_system_runs_there_is_nothing_to_connect_to(cluster: Cluster, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}])
    done = batch(cluster, str(source), str(tmp_path / "out.jsonl"), "--connect", "--address", cluster.address)
    assert done.returncode == 2
    assert last(done).endswith("no system is running here")


def test_where_no_cluster_is_it_says_so(tmp_path: Path, model: Path) -> None:
    source, (port,) = write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}]), free_ports(1)
    address = f"127.0.0.1:{port}"
    done = batch(None, str(source), str(tmp_path / "out.jsonl"), "--model", str(model), "--address", address)
    assert done.returncode == 2
    assert last(done).endswith(f"no Ray cluster answers at {address}")


def test_a_cluster_of_another_version_is_told_with_both_versions(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}])
    with started_cluster(has_jobs=False) as other:
        assert run(other, "tests.other_version", other.address).returncode == 0
        done = batch(other, str(source), str(tmp_path / "out.jsonl"), "--model", str(model), "--address", other.address)
    assert done.returncode == 2
    assert f"another version runs at {other.address}: there Ray 2.41.0, Python 3." in last(done)
    assert "; here Ray 2.60.0, Python 3." in last(done)
