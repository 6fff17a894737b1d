"""`genserve serve --address`: a system on a Ray that somebody else has started, and that stays when the system ends."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.batch_chaos import tiny_model
from tests.ray_cluster import ROOT, Cluster, free_ports

pytestmark = pytest.mark.ray
WAIT_SECONDS = 120.0
GENSERVE = (sys.executable, "-m", "deploy.cli.main")


@pytest.fixture
def url(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """Of a system on the cluster; the test ends it."""
    model, (port,) = tiny_model(tmp_path), free_ports(1)
    words = ("--model", model, "--directory", tmp_path / "state", "--port", port, "--address", cluster.address)
    command = [*GENSERVE, "serve", *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stderr=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stderr is not None
            assert "genserve is running" in serving.stderr.readline()
            yield f"http://127.0.0.1:{port}"
            assert serving.wait(WAIT_SECONDS) == 0
        finally:
            serving.kill()


def genserve(cluster: Cluster, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [*GENSERVE, *words, "--address", cluster.address]
    return subprocess.run(
        command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=WAIT_SECONDS
    )


def test_it_answers_and_is_ended_and_the_cluster_stays(cluster: Cluster, url: str) -> None:
    words = {"prompt": "Once", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{url}/v1/completions", json=words, trust_env=False, timeout=WAIT_SECONDS).json()
    assert answer.get("usage", answer).get("completion_tokens") == 8
    shown = json.loads(genserve(cluster, "status", "--json").stdout)
    assert {child["id"]: child["state"] for child in shown["children"]}["http"] == "running"
    assert genserve(cluster, "stop").returncode == 0
    nothing = genserve(cluster, "status")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "nothing runs" in nothing.stderr
