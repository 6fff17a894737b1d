"""Who is told that a Ray has died, and when: nobody listens any more where it was."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from actors import vigil
from actors.vigil import Vigil


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(vigil, "NEAR_SECONDS", 0.3)
    monkeypatch.setattr(vigil, "TRUST_SECONDS", 0.1)
    monkeypatch.setattr(vigil, "LAST_LOOK_SECONDS", 0.1)


@pytest.fixture
def store() -> Iterator[socket.socket]:
    with listening(0) as listener:
        yield listener


def listening(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def watched(store: socket.socket, told: list[float]) -> Vigil:
    return Vigil(f"127.0.0.1:{store.getsockname()[1]}", lambda: told.append(time.monotonic()))


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_one_that_stays_away_is_told_of_once(store: socket.socket) -> None:
    told: list[float] = []
    with watched(store, told):
        time.sleep(0.05)
        assert not told
        store.close()
        left = time.monotonic()
        wait_for(lambda: told)
    assert len(told) == 1 and told[0] - left > 0.25


def test_a_connection_that_stays_open_is_not_trusted_for_ever(store: socket.socket) -> None:
    """As where a machine lost its power, and came back without it."""
    told: list[float] = []
    with watched(store, told):
        left_open, _ = store.accept()
        store.close()
        wait_for(lambda: told)
        left_open.close()
    assert len(told) == 1


def test_one_that_comes_back_in_time_is_not_told_of(store: socket.socket) -> None:
    told: list[float] = []
    port = store.getsockname()[1]
    with watched(store, told):
        for _ in range(3):  # longer than its time in all
            store.close()
            time.sleep(0.15)
            store = listening(port)
            time.sleep(0.1)
        store.close()
    assert not told


def test_what_is_done_is_done_though_it_dies_then(store: socket.socket) -> None:
    told: list[float] = []
    with watched(store, told):
        store.close()
    assert not told


def test_a_failure_within_is_told_as_the_death_that_it_comes_of(store: socket.socket) -> None:
    told: list[float] = []
    with pytest.raises(OSError, match="gone"), watched(store, told):
        store.close()
        raise OSError("gone")
    assert len(told) == 1


def test_another_failure_is_none_of_it(store: socket.socket) -> None:
    told: list[float] = []
    with pytest.raises(OSError, match="another"), watched(store, told):
        raise OSError("another")
    assert not told
