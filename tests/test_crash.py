"""A running system on a real Ray, and real signals: what was accepted is answered as if nothing had happened."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from actors import chaos, system, watchdog
from actors.client import Client
from actors.node import spawn, whereis
from actors.pid import Pid
from actors.refusals import RequestPoisoned
from actors.stream import Stream
from actors.sys import stop
from actors.system_config import ROOT, SystemConfig
from engine.refusal import BadRequest, Refusal
from engine.request import Request
from engine.sequence import seed_of
from tests.engines import Answer, ask
from tests.serving import HANG, POISON, mixed_requests, tiny_system, undisturbed, words_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SystemConfig:
    return tiny_system(tmp_path_factory.mktemp("system"), max_restarts=1000)


@pytest.fixture(scope="module")
def client(ray: None, config: SystemConfig) -> Iterator[Client]:
    stop(spawn("actors.registry:Registry", name=f"{ROOT}.watchdog"))  # as an earlier system on this Ray had one
    made = system.start_system(config)
    yield made
    made.close()
    system.stop()


class Reader(threading.Thread):
    """One stream, read to its end as a client would."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(daemon=True)
        self.stream = stream
        self.answer = Answer()
        self.failure: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for piece in self.stream:
                tokens = self.answer.choices.setdefault(piece.choice, [])
                assert piece.position == len(tokens), "missing or repeated"
                tokens += piece.tokens
                if piece.finish_reason is not None:
                    self.answer.reasons[piece.choice] = piece.finish_reason
        except Exception as failure:
            self.failure = failure


def open_streams(client: Client, requests: list[Request], prefix: str) -> list[Reader]:
    return [Reader(client.stream(id=f"{prefix}{request.id}", **words_of(seeded(request)))) for request in requests]


def seeded(request: Request) -> Request:
    """With the seed that its id gives it, so that it can be sent under another id."""
    return replace(request, sampling=replace(request.sampling, seed=seed_of(request)))


def check(readers: list[Reader], requests: list[Request], expected: dict[str, Any]) -> None:
    for reader, request in zip(readers, requests, strict=True):
        reader.join(60)
        assert not reader.is_alive(), f"{request.id} never ended"
        assert reader.failure is None, f"{request.id}: {reader.failure}"
        answer = expected[request.id]
        assert (reader.answer.choices, reader.answer.reasons) == (answer.choices, answer.reasons), request.id


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return list(mixed_requests(32, max_tokens=60))


@pytest.fixture(scope="module")
def expected(config: SystemConfig, requests: list[Request], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return undisturbed(tmp_path_factory.mktemp("bare"), requests)


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.005)


def test_a_start_that_fails_leaves_nothing_behind(ray: None, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no-such-model"):
        system.start(tmp_path / "no-such-model", directory=tmp_path)
    assert whereis(ROOT) is None


def test_a_system_is_not_taken_for_another(client: Client, config: SystemConfig) -> None:
    with pytest.raises(BadRequest, match=f"a system runs here already, with {re.escape(config.choice.source)}"):
        system.start("/models/another")
    with pytest.raises(BadRequest, match=r"and adapters \['red', 'blue'\]: `connect` joins it"):
        system.start(config.choice.source, adapters={"voice": "/adapters/voice"})
    system.start(config.choice.source).close()


def test_nothing_was_restarted_in_a_system_that_has_just_been_started(client: Client) -> None:
    root = system.status()
    assert root is not None
    *others, guard = root.children
    assert guard.pid is not None and Pid.parse(guard.pid).epoch > 1
    assert {process.restarts for process in (root, *others, guard)} == {0}


@pytest.mark.parametrize("part", ["model", "request", "supervisor"])
def test_ten_kills_under_32_streams_lose_nothing(
    client: Client, config: SystemConfig, requests: list[Request], expected: dict[str, Any], part: chaos.Part
) -> None:
    wait_for(lambda: whereis(config.model_names[0]))
    model_before = whereis(config.model_names[0])
    kills = 10 if part == "model" else 4
    readers = open_streams(client, requests, f"{part}-")
    # Who makes no progress between two deaths may be to blame, and each is tried alone: they all get their turn.
    progress = partial(tokens_of, readers) if part != "model" else partial(tokens_known, client)
    turns = 2 * len(readers) if part == "model" else 0
    killed, num_noticed = None, 0
    for number in range(kills):
        wait_for(lambda killed=killed: (found := chaos.parts(part)) and killed not in found)
        before = progress()
        wait_for(lambda before=before: progress() > before + turns or not any(reader.is_alive() for reader in readers))
        killed = chaos.kill(part, number)
        num_noticed += any(reader.is_alive() for reader in readers)
    assert num_noticed >= kills // 2, "streams were being read"
    check(readers, requests, expected)
    (stats,) = client.stats()
    assert (stats.num_living, stats.counts["gaps"], stats.counts["duplicate_events"]) == (0, 0, 0)
    if part != "model":
        assert whereis(config.model_names[0]) == model_before, "the model was not loaded again"


def tokens_known(client: Client) -> int:
    (stats,) = client.stats()
    return stats.counts["tokens"]


def tokens_of(readers: list[Reader]) -> int:
    return sum(len(tokens) for reader in readers for tokens in reader.answer.choices.values())


def test_a_stopped_model_server_is_found_and_replaced_and_its_late_words_are_not_believed(
    client: Client, config: SystemConfig, requests: list[Request], expected: dict[str, Any]
) -> None:
    readers = open_streams(client, requests, "stopped-")
    wait_for(lambda: tokens_of(readers) > 50)
    zombie = whereis(config.model_names[0])
    assert zombie is not None
    os.kill(chaos.process_id_of(zombie), signal.SIGSTOP)
    began = time.monotonic()
    wait_for(lambda: whereis(config.model_names[0]) not in (None, zombie))
    assert time.monotonic() - began < 12.0
    check(readers, requests, expected)
    assert any(zombie.name in name for name, _ in watchdog.stats(f"{ROOT}.watchdog").kills)


def test_a_step_that_never_returns_is_found_and_its_request_is_named_poison(client: Client) -> None:
    innocent = ask("beside-the-hang", 9, max_tokens=40)
    reader = Reader(client.stream(id=innocent.id, **words_of(innocent)))
    with pytest.raises(RequestPoisoned):
        client.generate((*HANG, 5), id="hang", max_tokens=4)
    reader.join(60)
    assert reader.failure is None and len(reader.answer.tokens) == 40


def test_one_poison_among_many_is_answered_as_such_and_the_others_with_their_text(
    client: Client, requests: list[Request], expected: dict[str, Any]
) -> None:
    readers = open_streams(client, requests, "poisoned-")
    with pytest.raises(RequestPoisoned):
        client.generate((*POISON, 5), id="poison", max_tokens=4)
    check(readers, requests, expected)
    with pytest.raises(RequestPoisoned):
        client.generate((*POISON, 5), id="poison", max_tokens=4)


def test_a_stream_can_be_left_and_taken_up_again_elsewhere(client: Client, expected: dict[str, Any]) -> None:
    request = ask("left", 12, max_tokens=30)
    stream = client.stream(id="left", lease_seconds=None, **words_of(request))
    pieces = iter(stream)
    had = [token for piece in islice(pieces, 5) for token in piece.tokens]
    stream.leave()
    other = Client(1)
    rest = [token for piece in other.resume("left", 5) for token in piece.tokens]
    again = client.generate(id="left", lease_seconds=None, **words_of(request))
    assert (*had, *rest) == again.tokens
    other.close()
