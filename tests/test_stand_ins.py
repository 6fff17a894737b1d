"""What stands where Ray wants agents beside a node: one says that it serves nothing, one sleeps until it is asked."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.own_ray import HERE

TELL = "import json, sys; print(json.dumps(sys.argv[1:]), flush=True)"


@contextmanager
def standing(name: str, session: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A stand-in as a node starts it: the command of Ray's own program behind it, and the node's end of a pipe."""
    program = session / "agent.py"
    program.write_text(TELL)
    where = [f"--session-dir={session}", "--node-id=ab12", "--node-ip-address=127.0.0.1", "--runtime-env-agent-port=0"]
    command = [sys.executable, "-u", str(HERE / name), str(program), *where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        yield started


def said(session: Path, port: str) -> str:
    file = session / f"{port}_ab12"
    until = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    return file.read_text()


def test_the_silent_one_says_that_it_serves_nothing(tmp_path: Path) -> None:
    with standing("silent_agent.py", tmp_path):
        ports = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
        assert [said(tmp_path, port) for port in ports] == ["-1"] * 3


@pytest.mark.parametrize("name", ["silent_agent.py", "sleeping_agent.py"])
def test_it_ends_with_its_node(name: str, tmp_path: Path) -> None:
    with standing(name, tmp_path) as agent:
        said(tmp_path, "runtime_env_agent_port" if "sleeping" in name else "metrics_agent_port")
        assert agent.poll() is None
        output, _ = agent.communicate(timeout=20)
        assert (agent.returncode, output) == (0, b"")


def test_who_knocks_at_the_sleeping_one_wakes_rays_own_at_the_same_port(tmp_path: Path) -> None:
    with standing("sleeping_agent.py", tmp_path) as agent:
        port = said(tmp_path, "runtime_env_agent_port")
        socket.create_connection(("127.0.0.1", int(port))).close()
        output, _ = agent.communicate(timeout=20)
        assert json.loads(output)[-2:] == ["--runtime-env-agent-port=0", f"--runtime-env-agent-port={port}"]
