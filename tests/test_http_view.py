"""What the door makes of several processes: their counts as one system's."""

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.exits import CallFailed
from actors.refusals import Unavailable
from actors.request_stats import NOT_OPEN, RequestServerStats
from actors.system_config import partition_names
from deploy.http import actor_backend, actor_view
from deploy.http.actor_backend import ActorBackend
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
        return SimpleNamespace(engine=told[name], fingerprint="f")

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
    engines.clear()
    assert look(tmp_path, before).fingerprint == before.fingerprint == "f"


@pytest.fixture
def partitions(engines: dict[str, EngineStats], monkeypatch: pytest.MonkeyPatch) -> dict[str, RequestServerStats]:
    """What each request server says of itself; one that is not in the table does not answer."""
    told: dict[str, RequestServerStats] = {}

    def stats_of(name: str, timeout: float) -> RequestServerStats:
        if name not in told:
            raise CallFailed(name, "timeout")
        return told[name]

    monkeypatch.setattr(actor_view.request_server, "stats", stats_of)
    return told


FIRST, SECOND = partition_names(2)


def counting(num_tokens: int) -> RequestServerStats:
    return RequestServerStats(is_open=True, counts={"tokens": num_tokens})


def look_at_both(directory: Path, before: View = NO_VIEW) -> View:
    return view_of(tiny_system(directory, partitions=2), before, is_watched=False)


@pytest.mark.parametrize("answer", [None, NOT_OPEN], ids=["silent", "not_open"])
def test_a_partition_that_is_away_counts_as_it_was_seen_last(
    tmp_path: Path, partitions: dict[str, RequestServerStats], answer: RequestServerStats | None
) -> None:
    partitions |= {FIRST: counting(100), SECOND: counting(20)}
    view = look_at_both(tmp_path)
    assert view.stats.counts == {"tokens": 120}
    del partitions[SECOND]
    partitions |= {FIRST: counting(101)} | ({SECOND: answer} if answer is not None else {})
    view = look_at_both(tmp_path, view)
    assert view.stats.counts == {"tokens": 121}
    assert view.why_not_ready is not None
    partitions[SECOND] = counting(23)
    assert look_at_both(tmp_path, view).stats.counts == {"tokens": 124}


@pytest.mark.parametrize("answer", [None, NOT_OPEN], ids=["silent", "not_open"])
def test_nothing_is_counted_before_every_partition_has_told_its_counts(
    tmp_path: Path, partitions: dict[str, RequestServerStats], answer: RequestServerStats | None
) -> None:
    partitions |= {FIRST: counting(100)} | ({SECOND: answer} if answer is not None else {})
    view = look_at_both(tmp_path)
    assert view.stats.counts == {}
    partitions[SECOND] = counting(1_000_000)
    assert look_at_both(tmp_path, view).stats.counts == {"tokens": 1_000_100}


def test_adapters_are_told_while_a_partition_reads_its_journal(
    tmp_path: Path, partitions: dict[str, RequestServerStats]
) -> None:
    partitions |= {FIRST: NOT_OPEN, SECOND: replace(counting(1), adapters=("voice",))}
    view = look_at_both(tmp_path)
    assert view.adapters == ("voice",)
    partitions[SECOND] = NOT_OPEN
    assert look_at_both(tmp_path, view).adapters == ("voice",)


def test_who_comes_just_after_the_model_need_not_wait_for_the_next_look(
    tmp_path: Path, engines: dict[str, EngineStats], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_system(tmp_path)
    looks: list[View] = []
    see = actor_backend.view_of
    monkeypatch.setattr(actor_backend, "view_of", lambda *given, **said: looks.append(see(*given, **said)) or looks[-1])
    tokenizer: Any = SimpleNamespace(spec=SimpleNamespace(max_tokens=None), vocab_size=300)
    backend = ActorBackend(config, "tiny", tokenizer)

    async def cards() -> list[ModelCard]:
        with pytest.raises(Unavailable):
            await backend.card()
        engines["genserve.models.model-0"] = ENGINE
        return await asyncio.gather(*[backend.card() for _ in range(20)])

    assert {card.name for card in asyncio.run(cards())} == {"tiny"}
    assert len(looks) == 2  # one for all that came together
