"""A process that Ray asks nothing sleeps longer, and is there for whoever calls by either way."""

import sys
import threading
import time
from pathlib import Path

import pytest

from actors import rest
from actors.node import call, is_alive, spawn
from actors.rest import Rest
from actors.sys import stop
from tests.servers import Echo

REST = 0.2  # seconds; longer than a look that takes none, however busy the machine


@pytest.fixture
def long_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "REST_SECONDS", REST)


def look(given: Rest) -> float:
    began = time.monotonic()
    assert not given.is_finalizing()
    return time.monotonic() - began


@pytest.mark.usefixtures("long_rest")
def test_who_was_just_called_is_awake() -> None:
    assert look(Rest()) < REST


@pytest.mark.usefixtures("long_rest")
def test_who_was_not_called_for_a_while_rests_until_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "AWAKE_SECONDS", 0.01)
    given = Rest()
    time.sleep(0.02)
    assert look(given) >= REST
    monkeypatch.setattr(rest, "AWAKE_SECONDS", 3.0)
    given.disturb()
    assert look(given) < REST


def test_who_sleeps_is_woken_by_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "REST_SECONDS", 20.0)
    monkeypatch.setattr(rest, "AWAKE_SECONDS", 0.0)
    given = Rest()
    threading.Timer(0.1, given.disturb).start()
    assert look(given) < 10


@pytest.mark.usefixtures("long_rest")
def test_one_call_wakes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "AWAKE_SECONDS", 0.0)
    given = Rest()
    given.disturb()
    assert look(given) < REST
    assert look(given) >= REST


@pytest.mark.usefixtures("long_rest")
def test_only_the_thread_that_takes_rays_calls_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "AWAKE_SECONDS", 0.0)
    given, took = Rest(), list[float]()
    other = threading.Thread(target=lambda: took.append(look(given)))
    other.start()
    other.join()
    assert took[0] < REST


def test_all_else_is_answered_as_sys_would() -> None:
    assert Rest().version_info == sys.version_info


@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="wakes are counted where the system tells them")
def test_a_process_at_rest_wakes_less_often_and_answers(ray: None) -> None:
    pid = spawn(Echo)
    status = Path(f"/proc/{call(pid, 'os_pid')}/status")  # its main thread's
    time.sleep(rest.AWAKE_SECONDS + 0.5)
    before = num_wakes(status)
    time.sleep(2)
    assert num_wakes(status) - before < 70  # 20 now, 70 with a rest of 50 ms, and 200 before
    assert call(pid, "os_pid")
    assert is_alive(pid)
    stop(pid)
    assert not is_alive(pid)


@pytest.mark.ray
def test_whether_it_lives_is_asked_without_waking_a_process_at_rest(ray: None) -> None:
    pid = spawn(Echo)
    time.sleep(rest.AWAKE_SECONDS + 0.5)
    began = time.monotonic()
    assert all(is_alive(pid) for _ in range(20))
    assert time.monotonic() - began < 10 * rest.REST_SECONDS / 2  # half of what ten of them would wait for Ray's thread
    stop(pid)
    assert not is_alive(pid)


def num_wakes(status: Path) -> int:
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
