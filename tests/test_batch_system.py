"""deploy/jobs/system_serving.py: in which order a batch's own system ends. Nothing is started here."""

from contextlib import nullcontext
from typing import Any

import pytest

from actors.ledger_options import LedgerOptions
from actors.model_choice import ModelChoice
from actors.system_config import SystemConfig
from deploy.jobs import system_serving


def test_an_interrupted_batch_has_closed_its_client_before_the_system_and_the_node_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[str] = []

    class Client:
        def close(self) -> None:
            ended.append("client")

    class Process:
        connect = staticmethod(lambda: None)
        vigil = staticmethod(lambda act: nullcontext())
        disconnect = staticmethod(lambda: ended.append("node"))

    def replace(name: str, value: Any) -> None:
        monkeypatch.setattr(system_serving, name, value)

    choice = ModelChoice("model")
    replace("process", Process)
    replace("config_for", lambda *_: SystemConfig(choice, "/nowhere"))
    replace("Heartbeat", nullcontext)
    replace("start_system", lambda config: Client())
    replace("serving_of", lambda client, choice: client)
    replace("stop", lambda: ended.append("system"))
    with (
        pytest.raises(KeyboardInterrupt),
        system_serving.own_system(choice, "batch", LedgerOptions(), None, lambda: None),
    ):
        raise KeyboardInterrupt
    assert ended == ["client", "system", "node"]
