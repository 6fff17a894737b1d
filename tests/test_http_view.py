"""What the door makes of several processes: their counts as one system's."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.exits import CallFailed
from actors.request_stats import RequestServerStats
from deploy.http import actor_view
from deploy.http.actor_view import NO_VIEW, View, view_of
from deploy.http.backend import ModelCard
from deploy.http.meters import Meters
from engine.limits import Capacity
from engine.stats import EngineStats
from tests.serving import tiny_system

ENGINE = EngineStats(
    num_running=3,
    num_waiting=1,
    waiting_tokens=7,
    num_blocks=100,
    used_blocks=40,
    remembered_blocks=5,
    block_size=16,
    adapters=("a",),
    resident_adapters=(),
    adapter_bytes=10,
    generated_tokens=1000,
)
OTHER = replace(ENGINE, num_running=1, adapters=("a", "b"), generated_tokens=500, used_blocks=2)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, EngineStats]:
    """What each model server says of its engine; one that is not in the table does not answer."""
    told: dict[str, EngineStats] = {}

    def stats_of(name: str, timeout: float) -> Any:
        if name not in told:
            raise CallFailed(name, "noproc")
        return SimpleNamespace(engine=told[name])

    monkeypatch.setattr(actor_view, "whereis", lambda name: name)
    monkeypatch.setattr(actor_view.sys, "statistics", lambda pid, timeout: SimpleNamespace(is_suspended=False))
    monkeypatch.setattr(actor_view.model_stats, "stats", stats_of)
    monkeypatch.setattr(actor_view.request_server, "stats", lambda name, timeout: RequestServerStats(is_open=True))
    return told


def look(directory: Path, before: View = NO_VIEW) -> View:
    return view_of(tiny_system(directory, replicas=2), before, is_watched=False)


def test_the_engines_of_several_replicas_are_added_up(tmp_path: Path, engines: dict[str, EngineStats]) -> None:
    engines |= {"genserve.models.model-0": ENGINE, "genserve.models.model-1": OTHER}
    stats = look(tmp_path).stats
    assert stats.engine is not None
    assert (stats.engine.generated_tokens, stats.engine.num_running, stats.engine.num_blocks) == (1500, 4, 200)
    assert (stats.engine.block_size, stats.engine.adapters) == (16, ("a", "b"))
    text = Meters().text(stats, ModelCard("m", Capacity(10, 10), "f", 8), True).decode()
    assert "genserve_generated_tokens_total 1500.0" in text
    assert "genserve_batch_occupancy 0.25" in text  # 4 of twice 8


def test_a_replica_that_is_away_counts_as_it_was_seen_last(tmp_path: Path, engines: dict[str, EngineStats]) -> None:
    engines |= {"genserve.models.model-0": ENGINE, "genserve.models.model-1": OTHER}
    before = look(tmp_path)
    del engines["genserve.models.model-1"]
    after = look(tmp_path, before).stats
    assert after.engine is not None and after.engine.generated_tokens == 1500
