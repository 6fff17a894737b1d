"""actors/readiness.py: who waits for a system hears why there will be none."""

import time
from typing import Any, cast

import pytest

from actors import readiness
from actors.client import Client
from actors.exits import Reason
from actors.model_choice import ModelChoice
from actors.readiness import fault_below, wait_until_ready
from actors.refusals import Unavailable
from actors.tree import TreeNode
from engine.refusal import BrokenFile

BROKEN = ("error", "BrokenFile", "weights.safetensors ends too soon")
CHOICE = ModelChoice("nowhere", make_tokenizer="tests.test_readiness:read_nothing")


class NeverReady:
    def is_ready(self) -> bool:
        return False


def read_nothing(choice: ModelChoice) -> None:
    raise BrokenFile(f"{choice.source} has no tokenizer.json")


def tree(reason: Reason | None) -> TreeNode:
    server = TreeNode("model-0", None, "restarting", 1, reason)
    models = TreeNode("models", "genserve.models/1", "running", 0, None, (server,))
    return TreeNode("root", "genserve/1", "running", 0, None, (TreeNode("registry", None, "running", 0, None), models))


def wait(monkeypatch: pytest.MonkeyPatch, found: TreeNode | None, choice: ModelChoice = CHOICE, **words: Any) -> None:
    monkeypatch.setattr(readiness, "status", lambda: found)
    wait_until_ready(cast(Client, NeverReady()), choice, **{"seconds": 60.0, **words})


def test_what_a_process_could_not_read_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with pytest.raises(BrokenFile, match=r"^weights.safetensors ends too soon$"):
        wait(monkeypatch, tree(BROKEN))
    assert time.monotonic() - began < 10


def test_what_took_the_whole_system_with_it_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokenFile, match=r"^nowhere has no tokenizer.json$"):
        wait(monkeypatch, None)


def test_a_system_that_gave_up_of_something_else_is_said_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="gave up"):
        wait(monkeypatch, None, ModelChoice("", make_tokenizer="actors.tokenizer_loading:bytes_tokenizer"))


def test_others_deaths_are_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for reason in (None, "killed", "shutdown", ("error", "OSError", "no"), ("error", "BrokenFile")):
        assert fault_below(tree(reason)) is None
    with pytest.raises(Unavailable, match="no model was ready within 0 s"):
        wait(monkeypatch, tree("killed"), seconds=0.0)
