"""Which Ray is ours: one that is dead, stopped or no Ray at all is told within seconds, and nothing is started open."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import finding
from actors.finding import answers, find_ray, join
from actors.refusals import Unavailable
from deploy.cli.main import main

SECONDS = 20.0  # on a busy machine; Ray itself waits for forty at least


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somewhere without notes; and shorter answers are waited for, to be done sooner."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(finding, "ANSWER_SECONDS", 0.3)
    return tmp_path / ".genserve" / "running"


@pytest.fixture
def silent() -> Iterator[str]:
    """Somebody who takes connections and says nothing, as a stopped control store does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dead() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("address", ["silent", "dead", "127.0.0.1:99999", "nonsense", "127.0.0.1:"])
def test_where_no_ray_answers_it_is_said_within_seconds(request: pytest.FixtureRequest, address: str) -> None:
    if address in ("silent", "dead"):
        address = request.getfixturevalue(address)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no Ray answers at"):
        join(address)
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("arguments", [["status"], ["stop"], ["chaos", "kill", "model"]])
def test_commands_say_in_a_sentence_that_nothing_runs(
    capsys: pytest.CaptureFixture[str], silent: str, arguments: list[str]
) -> None:
    began = time.monotonic()
    code = main([*arguments, "--address", silent])
    captured = capsys.readouterr()
    assert (code, captured.out) == (1, "")
    assert captured.err == f"genserve: nothing runs: no Ray answers at {silent}\n"
    assert time.monotonic() - began < SECONDS


def test_status_as_json_is_null_where_nothing_runs(capsys: pytest.CaptureFixture[str], dead: str) -> None:
    assert main(["status", "--json", "--address", dead]) == 1
    assert capsys.readouterr().out == "null\n"


def test_auto_passes_over_the_dead_and_the_silent(monkeypatch: pytest.MonkeyPatch, silent: str, dead: str) -> None:
    monkeypatch.setattr(finding, "known_rays", lambda: [dead, silent, "a:1", "b:2"])
    monkeypatch.setattr(finding, "answers", lambda address: answers(address) if "127" in address else True)
    assert find_ray("auto") == "a:1"
    monkeypatch.setattr(finding, "known_rays", lambda: [dead])
    with pytest.raises(Unavailable, match="no Ray is running here"):
        find_ray("auto")


def test_the_system_that_was_started_last_comes_first_and_notes_of_the_dead_go(
    monkeypatch: pytest.MonkeyPatch, home: Path, dead: str
) -> None:
    home.mkdir(parents=True)
    for moment, name in enumerate(("a:1", "b:2", dead)):
        (home / name).touch()
        os.utime(home / name, (moment, moment))
    monkeypatch.setattr(finding, "answers", lambda address: address in ("a:1", "b:2"))
    assert find_ray("auto") == "b:2"
    assert sorted(path.name for path in home.iterdir()) == ["a:1", "b:2"]


def test_an_address_in_the_environment_is_the_one_that_is_meant(monkeypatch: pytest.MonkeyPatch, dead: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", dead)
    with pytest.raises(Unavailable, match=f"no Ray answers at {dead}"):
        join("auto")


@pytest.mark.parametrize("address", ["10.1.2.3:6379", "ray://10.1.2.3:10001", "[fe80::1]:6379", "example.org:6379"])
def test_nothing_is_started_on_a_ray_that_strangers_reach_without_a_token(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(finding, "answers", lambda address: True)
    with pytest.raises(Unavailable, match="not on loopback and there is no token"):
        join(address, must_be_closed=True)


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "[::1]:6379", "localhost:6379"])
def test_loopback_is_closed_enough(address: str) -> None:
    finding.check_loopback(address)
