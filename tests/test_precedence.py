"""Who gives way to those that compute: what a batch starts, but for its model's process."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import precedence
from actors.inline import Inline
from actors.model_choice import ModelChoice
from actors.model_server import ModelServer
from actors.node import call, spawn
from actors.sys import stop
from engine.engine import Engine
from tests.servers import Echo
from tests.serving import quick_engine, tiny_choice

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has such a thing")


@pytest.fixture(autouse=True)
def policy() -> Iterator[None]:
    before = os.sched_getscheduler(0)
    yield
    precedence.set_policy(before)


def in_a_thread(act: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(act()))
    thread.start()
    thread.join()
    return found[0]


def own_policy() -> int:
    return os.sched_getscheduler(0)


def test_what_is_started_within_gives_way() -> None:
    with precedence.given():
        assert own_policy() == in_a_thread(own_policy) == os.SCHED_BATCH
        command = [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"]
        assert int(subprocess.run(command, capture_output=True, check=True).stdout) == os.SCHED_BATCH
    assert own_policy() == in_a_thread(own_policy) == os.SCHED_OTHER


def test_who_takes_precedence_hands_it_on_to_its_threads() -> None:
    with precedence.given():

        def take() -> tuple[int, int]:
            precedence.take()
            return own_policy(), in_a_thread(own_policy)

        assert in_a_thread(take) == (os.SCHED_OTHER, os.SCHED_OTHER)
        assert own_policy() == os.SCHED_BATCH


def test_a_policy_that_somebody_chose_is_left() -> None:
    def as_idle() -> list[int]:
        precedence.set_policy(os.SCHED_IDLE)
        with precedence.given():
            within = own_policy()
            precedence.take()
        return [within, own_policy()]

    assert in_a_thread(as_idle) == [os.SCHED_IDLE, os.SCHED_IDLE]


def test_where_it_is_refused_nobody_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with precedence.given():
        assert own_policy() == os.SCHED_OTHER
        precedence.take()


def look(choice: ModelChoice) -> Engine:
    POLICIES.append(own_policy())
    return quick_engine(choice)


POLICIES: list[int] = []


def test_a_model_server_takes_it_before_it_has_an_engine(tmp_path: Path) -> None:
    choice = tiny_choice(tmp_path, make_engine="tests.test_precedence:look")
    with precedence.given(), Inline() as node:
        spawn(ModelServer, choice, str(tmp_path / "state"))
        node.run()
    assert POLICIES == [os.SCHED_OTHER]


@pytest.mark.ray
def test_what_runs_on_a_ray_of_our_own_gives_way(ray: None) -> None:
    pid = spawn(Echo)
    threads = Path(f"/proc/{call(pid, 'os_pid')}/task").iterdir()
    assert {os.sched_getscheduler(int(thread.name)) for thread in threads} == {os.SCHED_BATCH}
    assert own_policy() == os.SCHED_OTHER
    stop(pid)
