"""A Ray cluster of one node, as an administrator starts it: on loopback and free ports, closed by a token."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parent.parent
START_SECONDS = 120.0
CLIENT_PORT = ("--ray-client-server-port",) if find_spec("grpc") else ()  # a service that only comes with grpc
PORTS = ("--port", "--dashboard-port", "--dashboard-agent-listen-port", *CLIENT_PORT)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster: where it is, and what lets one in."""

    address: str
    dashboard: str
    token: str

    @property
    def environment(self) -> dict[str, str]:
        """That of a program which may talk to it."""
        others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return others | {
            "PATH": path,  # the cluster's `python` is ours
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as on a laptop: all ports stay on loopback
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_worker_niceness": "0",  # else its processes wait for whatever runs beside the tests
        }

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ray ...` on the command line."""
        command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=300)

    def submit(self, *entrypoint: str, submission_id: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- ...`, which comes back at once."""
        place = ("--address", self.dashboard, "--working-dir", ".", "--submission-id", submission_id)
        return self.ray("job", "submit", *place, "--no-wait", "--", *entrypoint)

    def start(self, entrypoint: str, submission_id: str) -> None:
        """A job in the directory that an earlier `submit` has sent, without the seconds that Ray's command takes."""
        earlier: Any = self.ask("/api/jobs/")
        (directory,) = {job["runtime_env"]["working_dir"] for job in earlier if job["runtime_env"]}
        job = {"entrypoint": entrypoint, "submission_id": submission_id, "runtime_env": {"working_dir": directory}}
        self.ask("/api/jobs/", "POST", job)

    def logs(self, submission_id: str) -> str:
        return str(self.ask(f"/api/jobs/{submission_id}/logs")["logs"])

    def ask(self, path: str, method: str = "GET", body: object = None) -> dict[str, object]:
        """The job server's answer."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(self.dashboard + path, data, headers, method=method), timeout=10) as answer:
            found: dict[str, object] = json.load(answer)
        return found


@contextmanager
def started_cluster(num_cpus: int = 2, has_jobs: bool = True) -> Iterator[Cluster]:
    """Start one, and stop exactly what was started."""
    directory = tempfile.mkdtemp(prefix="gs", dir="/tmp")  # short: Ray puts sockets below it
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    dashboard = f"http://127.0.0.1:{ports['--dashboard-port']}"
    cluster = Cluster(f"127.0.0.1:{ports['--port']}", dashboard, secrets.token_hex(32))
    options = [part for name, port in ports.items() for part in (name, str(port))]
    options += [
        "--node-ip-address",
        "127.0.0.1",
        "--dashboard-host",
        "127.0.0.1",
        "--include-dashboard",
        str(has_jobs).lower(),
    ]
    options += ["--min-worker-port", "0", "--max-worker-port", "0", "--num-cpus", str(num_cpus)]
    options += ["--include-log-monitor", "false"]  # it copies what processes print to who began them
    options += ["--temp-dir", directory, "--object-store-memory", str(128 << 20), "--disable-usage-stats", "--block"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *options]
    with open(f"{directory}/log", "w") as log:
        head = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(cluster, head, Path(directory, "log"), has_jobs)
        yield cluster
    finally:
        stop(head)
        shutil.rmtree(directory, ignore_errors=True)


def wait_for(cluster: Cluster, head: "subprocess.Popen[bytes]", log: Path, has_jobs: bool) -> None:
    """Until it answers: its job server, if it has one, or its control store."""
    until = time.monotonic() + START_SECONDS
    while True:
        if head.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the cluster did not start: {log.read_text()[-2000:]}")
        try:
            if has_jobs:
                cluster.ask("/api/version")
            elif "Ray runtime started" not in log.read_text():
                raise OSError("not yet")
            return
        except (URLError, OSError):
            time.sleep(0.2)


def stop(head: "subprocess.Popen[bytes]") -> None:
    """`ray start --block` ends its node's processes when it is told to end; its session is ours alone."""
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        with closing(one):
            pass
    return ports
