"""`genserve serve --inline`, as a person starts and ends it."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from deploy.cli.main import main
from tests.http_world import wait_until_ready
from tests.tiny import write_checkpoint
from tests.tiny_tokenizer import write_tokenizer


def test_one_process_serves_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    model = write_tokenizer(write_checkpoint(tmp_path / "tiny", "llama"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "deploy.cli.main", "serve", "--inline", "--model", str(model), "--port", port]
    with subprocess.Popen([*command, "--known-as", "models.example"], stderr=subprocess.PIPE) as server:
        assert server.stderr is not None
        while b"http://" not in server.stderr.readline():
            pass
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
            wait_until_ready(client)
            answer = client.post("/v1/completions", json={"prompt": "Once"}, headers={"Host": "models.example"})
            assert answer.status_code == 200 and answer.json()["model"] == "tiny"
        server.send_signal(signal.SIGINT)
        assert server.wait(20) in (0, 130)


@pytest.mark.parametrize("option", ["--replicas=2", "--power-safe", "--adapter=voice=./voice"])
def test_what_one_process_cannot_do_is_refused_by_name(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--inline", option]) == 2
    assert option.split("=")[0] in capsys.readouterr().err
