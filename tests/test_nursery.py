"""What Ray starts for a worker: a fork of the nursery that goes on as the worker, or the worker itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.newborn import NO_RUNTIME_ENV, NURSERY, WORKER
from actors.nursery import ON_A_GPU, is_installed
from tests.ray_cluster import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a fork is not safe")
NEWBORN = str(ROOT / "actors" / "newborn.py")
TELL = """
import json, os, signal, sys
def told():
    is_default = signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    return [os.getppid(), sys.argv[1:], os.getcwd(), os.environ["SAID"], "ray" in sys.modules, is_default]
def place():
    paths = [path for path in sys.path if "thirdparty_files" not in path]
    score = int(open("/proc/self/oom_score_adj").read())
    return [paths, os.getpgid(0) == os.getpid(), score, sorted(os.listdir("/proc/self/fd"))]
def computed():
    was_there = "mlx.core" in sys.modules
    import mlx.core as mx
    import numpy as np
    return [was_there, mx.arange(1000).square().sum().item(), float(np.ones((99, 99)).dot(np.ones(99)).sum())]
if "--place" in sys.argv:
    told = place
if "--compute" in sys.argv:
    told = computed
print(json.dumps(told()), flush=True)
sys.exit(7)
"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program in the place of Ray's own, which tells how it was begun."""
    path = tmp_path_factory.mktemp("nursery") / "worker.py"
    path.write_text(TELL)
    return path


@pytest.fixture(scope="module")
def nursery(worker: Path) -> Iterator["subprocess.Popen[bytes]"]:
    place = worker.with_name("nursery")
    command = [sys.executable, "-P", "-m", "actors.nursery", str(place)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) as started:
        while not place.exists():
            assert started.poll() is None
            time.sleep(0.01)
        yield started
        started.kill()


def begin(worker: Path, directory: Path, *words: str) -> "subprocess.Popen[bytes]":
    nursery = str(worker.with_name("nursery"))
    ours = {NURSERY: nursery, WORKER: str(worker), "SAID": "täglich", "PYTHONPATH": str(ROOT)}
    environment, command = {**os.environ, **ours}, [sys.executable, NEWBORN, *words]
    return subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.PIPE)


def told(begun: "subprocess.Popen[bytes]") -> Any:
    assert begun.stdout is not None
    with begun.stdout as output:
        first = json.loads(output.readline())
    begun.wait()
    return first


def test_a_fork_goes_on_as_the_program_that_asked(
    nursery: "subprocess.Popen[bytes]", worker: Path, tmp_path: Path
) -> None:
    begun = begin(worker, tmp_path, "--this", NO_RUNTIME_ENV)
    assert told(begun) == [nursery.pid, ["--this", NO_RUNTIME_ENV], str(tmp_path), "täglich", True, True]
    assert begun.returncode == 0, "who asked is through"


def test_a_fork_has_mlx_where_that_has_no_gpu_and_computes(nursery: "subprocess.Popen[bytes]", worker: Path) -> None:
    begun = begin(worker, worker.parent, "--compute", NO_RUNTIME_ENV)
    assert told(begun) == [not any(map(is_installed, ON_A_GPU)), 332833500, 99.0**2]


def test_a_fork_stands_where_a_worker_of_rays_own_would(nursery: "subprocess.Popen[bytes]", worker: Path) -> None:
    """Its own group, with which Ray ends its children, the first to go where memory is short, and no file too many."""
    paths, leads_a_group, score, files = told(begin(worker, worker.parent, NO_RUNTIME_ENV, "--place"))
    as_worker, _, _, its_files = told(begin(worker, worker.parent, "--place"))
    assert (paths, leads_a_group, score) == (as_worker, True, 1000)
    assert len(files) == len(its_files)


def test_forks_that_ended_are_gone_and_the_next_is_born(nursery: "subprocess.Popen[bytes]", worker: Path) -> None:
    begun = [begin(worker, worker.parent, NO_RUNTIME_ENV) for _ in range(5)]
    assert [told(one)[0] for one in begun] == [nursery.pid] * 5
    until = time.monotonic() + 10
    while children := Path(f"/proc/{nursery.pid}/task/{nursery.pid}/children").read_text():
        assert time.monotonic() < until, f"they are still there: {children}"


def test_who_hangs_up_in_the_middle_disturbs_nobody(nursery: "subprocess.Popen[bytes]", worker: Path) -> None:
    before = open_files(nursery)
    for said in (b"\0\0", b"\0\0\1\0{", b"\0\0\0\1}", b"\0\0\0\2{}"):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(worker.with_name("nursery")))
            socket.send_fds(caller, [said], [0, 1, 2])
    assert told(begin(worker, worker.parent, NO_RUNTIME_ENV))[0] == nursery.pid
    assert open_files(nursery) == before


def open_files(process: "subprocess.Popen[bytes]") -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


@pytest.mark.parametrize("words", [("--runtime-env-hash=12",), ()])
def test_a_worker_in_an_environment_of_its_own_is_no_fork(
    nursery: "subprocess.Popen[bytes]", worker: Path, words: tuple[str, ...]
) -> None:
    begun = begin(worker, worker.parent, *words)
    assert told(begun) == [os.getpid(), list(words), str(worker.parent), "täglich", False, True]
    assert begun.returncode == 7, "it is the worker"


def test_forks_draw_ids_of_their_own(nursery: "subprocess.Popen[bytes]", worker: Path) -> None:
    drawing = worker.with_name("drawing.py")
    drawing.write_text("import json, ray\nprint(json.dumps(ray.ObjectID.from_random().hex()), flush=True)\n")
    assert len({told(begin(drawing, worker.parent, NO_RUNTIME_ENV)) for _ in range(20)}) == 20


THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
DRAW = "import ray\nray.ObjectID.from_random()\n"


@pytest.mark.parametrize("does", [THREAD, DRAW])
def test_a_nursery_whose_imports_do_what_they_must_not_is_none(does: str, tmp_path: Path) -> None:
    (tmp_path / "starlette").mkdir()
    (tmp_path / "starlette" / "__init__.py").write_text("")
    (tmp_path / "starlette" / "datastructures.py").write_text(does)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "actors.nursery", str(tmp_path / "nursery")]
    ended = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, timeout=30)
    assert ended.returncode == 0, "it is over, and forked nobody"


def test_without_a_nursery_a_worker_begins_as_rays_own(nursery: "subprocess.Popen[bytes]", worker: Path) -> None:
    nursery.send_signal(signal.SIGKILL)
    nursery.wait()
    assert told(begin(worker, worker.parent, NO_RUNTIME_ENV))[0] == os.getpid()
    worker.with_name("nursery").unlink()
    assert told(begin(worker, worker.parent, NO_RUNTIME_ENV))[0] == os.getpid()
