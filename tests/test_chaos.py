"""Chaos, where nothing is there to be killed yet. Whole systems are struck in test_crash.py."""

import os
from types import SimpleNamespace

import pytest

from actors import chaos, process
from actors.pid import Pid
from actors.refusals import Unavailable


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
