"""Chaos, where nothing is there to be killed. Whole systems are struck in test_crash.py."""

import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from actors import chaos, process
from actors.pid import Pid
from actors.refusals import Unavailable
from deploy.cli import chaos as command
from deploy.cli.main import main


def test_a_process_that_is_still_being_started_is_no_victim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives it the number 0, and a signal to 0 goes to everybody in the sender's group."""
    kills: list[tuple[int, int]] = []
    actor = SimpleNamespace(_actor_id=b"actor")
    monkeypatch.setattr(process, "ray", SimpleNamespace(get_actor=lambda name, namespace: actor))
    monkeypatch.setattr(chaos, "state", SimpleNamespace(actors=lambda actor_id: {"Pid": 0}))
    monkeypatch.setattr(chaos, "living", lambda prefix: [Pid("genserve.models.model-0", 1)])
    monkeypatch.setattr(os, "kill", lambda *what: kills.append(what))
    assert chaos.parts("model") == []
    with pytest.raises(Unavailable, match="no model runs here"):
        chaos.kill("model")
    assert kills == []


@pytest.mark.parametrize(
    ("num_models", "number", "sentence"),
    [
        (1, "7", "no model has the number 7: 0 is the only one"),
        (3, "3", "no model has the number 3: they go from 0 to 2"),
        (3, "-1", "no model has the number -1: they go from 0 to 2"),
    ],
)
def test_a_number_that_nobody_has_kills_nobody(
    num_models: int,
    number: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kills: list[int] = []
    monkeypatch.setattr(command, "running_client", lambda address: nullcontext("a client"))
    monkeypatch.setattr(
        chaos, "parts", lambda part: [Pid(f"genserve.models.model-{index}", 1) for index in range(num_models)]
    )
    monkeypatch.setattr(chaos, "kill", lambda part, number: kills.append(number))
    assert main(["chaos", "kill", "model", "--number", number]) == 2
    assert capsys.readouterr().err == f"genserve: {sentence}\n"
    assert kills == []
    assert main(["chaos", "kill", "model"]) == 0
    assert kills == [0]
