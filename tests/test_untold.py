"""What a model server keeps to itself for a while, and what it does not."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from actors import model_server
from actors.exits import KILL
from actors.genserver import GenServer, NoReply
from actors.inline import Inline
from actors.messages import Abort, Events, Run
from actors.model_server import ModelServer
from actors.node import cast, exit, spawn
from actors.pid import Pid
from actors.polls import Part
from engine.adapter import Adapter
from engine.event import Event, TokenEvent
from engine.refusal import BadRequest
from engine.request import Request
from engine.weights import Model
from engine.wire import pack_request, unpack_events
from tests import serving
from tests.engines import ask
from tests.serving import mixed_requests, quick_engine, read_adapter, undisturbed
from tests.test_request_server import Bench, bench, gathered, same, steps

Told = list[list[Event]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """The messages to request servers, by the events in them."""
    messages: Told = []
    pack = model_server.pack_events

    def noted(events: list[Event]) -> bytes:
        messages.append(events)
        return pack(events)

    monkeypatch.setattr(model_server, "pack_events", noted)
    return messages


def is_whole(part: Part | None, request: Request, directory: Path) -> bool:
    return part is not None and same(part, undisturbed(directory, [request], quick_engine)[request.id])


@contextmanager
def under_way(directory: Path, max_tokens: int, num_steps: int) -> Iterator[tuple[Bench, list[Request]]]:
    """Twelve requests, in the middle of their answers."""
    requests = [ask(f"long-{number}", 5, max_tokens=max_tokens) for number in range(12)]
    with bench(directory, **gathered(directory)) as made:
        made.node.run()
        for request in requests:
            made.submit(request)
        steps(made.node, num_steps)
        yield made, requests


def test_while_others_wait_several_steps_are_told_together(tmp_path: Path, told: Told) -> None:
    requests = list(mixed_requests(20))
    with bench(tmp_path, **gathered(tmp_path)) as made:
        parts = made.run(requests)
        num_tokens = [sum(isinstance(event, TokenEvent) for event in message) for message in told]
        assert max(num_tokens) > 20 * 4  # the tokens of many steps
        for request in requests:
            assert is_whole(parts.get(request.id), request, tmp_path), request.id


def test_without_leave_every_step_is_told(tmp_path: Path, told: Told) -> None:
    with bench(tmp_path, **gathered(tmp_path) | {"gather_seconds": 0.0}) as made:
        made.run([ask(f"plain-{number}", 5, max_tokens=24) for number in range(20)])
        assert max(map(len, told)) <= 2 * 4  # tokens and beginnings


def test_the_last_ones_are_told_step_by_step(tmp_path: Path, told: Told) -> None:
    """Where the engine would run short of requests nobody is kept waiting."""
    with bench(tmp_path, **gathered(tmp_path)) as made:
        made.run([ask(f"plain-{number}", 5, max_tokens=24) for number in range(4)])
        assert len(told) >= 24


def test_what_is_kept_is_told_when_its_time_is_over(tmp_path: Path, told: Told) -> None:
    with under_way(tmp_path, 400, 60) as (made, _):
        before = len(told)
        steps(made.node, 20)
        assert len(told) == before
        made.node._clock += 61.0
        steps(made.node, 20)
        assert len(told) == before + 1


def test_what_is_kept_is_told_when_the_others_are_cancelled(tmp_path: Path, told: Told) -> None:
    """No step comes any more that could bring it out."""
    with under_way(tmp_path, 400, 80) as (made, requests):
        before = len(told)
        cast(made.model, Abort(tuple(request.id for request in requests)))
        made.node.run()
        assert len(told) == before + 1


def test_who_has_ended_is_not_turned_away_with_an_adapter_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one adapter fits; the first is gone when it is read again, for somebody else."""
    reads = Counter[str]()

    def read_once(path: str, model: Model) -> Adapter:
        reads[path] += 1
        if path == "1" and reads[path] > 2:  # it is read when it is attached, too
            raise BadRequest("its folder is gone", "adapter")
        return read_adapter(path, model)

    words = gathered(tmp_path)
    options = replace(words["choice"].options, max_adapter_bytes=40_000)
    first, other, again = (
        ask(f"{name}-{number}", 5, adapter=name, max_tokens=10) for number, name in enumerate(("red", "blue", "red"))
    )
    others = [ask(f"plain-{number}", 5, max_tokens=60) for number in range(30)]
    expected = undisturbed(tmp_path, [first, other], quick_engine)
    monkeypatch.setattr(serving, "read_adapter", read_once)
    with bench(tmp_path, **words | {"choice": replace(words["choice"], options=options)}) as made:
        parts = made.run([first, other, again, *others])
        assert same(parts[first.id], expected[first.id])
        assert same(parts[other.id], expected[other.id])
        assert parts[again.id].end is not None
        assert parts[again.id].end.code == "unavailable"


class Consumer(GenServer):
    """In the place of a request server: keeps what it is told."""

    def init(self) -> None:
        self.heard: list[Event] = []

    def handle_cast(self, message: object) -> NoReply:
        if isinstance(message, Events):
            self.heard += unpack_events(message.packed)
        return NoReply()


def test_what_was_kept_for_a_dead_consumer_does_not_touch_its_next_life(tmp_path: Path) -> None:
    def run(consumer: Pid, *requests: Request, is_alone: bool = False) -> None:
        cast(model, Run(consumer, tuple(map(pack_request, requests)), is_alone))

    request = ask("again", 5, max_tokens=30)
    with Inline() as node:
        words = gathered(tmp_path)
        model = spawn(ModelServer, words["choice"], str(tmp_path / "state"), (), words["gather_seconds"])
        other, one = spawn(Consumer), spawn(Consumer, name="one")
        node.run()
        run(one, request)
        run(other, *(ask(f"other-{number}", 5, max_tokens=200) for number in range(12)))
        steps(node, 40)
        exit(one, KILL)
        one = spawn(Consumer, name="one")
        run(other, ask("suspect", 5, max_tokens=20), is_alone=True)
        run(one, request)
        node.run()
        heard = node._cells[one].loop.server.heard  # type: ignore[union-attr]
        assert sum(isinstance(event, TokenEvent) for event in heard) == 30


def test_who_runs_alone_is_told_step_by_step(tmp_path: Path, told: Told) -> None:
    """The others come in again as soon as it has got further, and that is known."""
    suspect = ask("suspect", 5, max_tokens=60)
    with under_way(tmp_path, 60, 60) as (made, _):
        cast(made.model, Run(made.requests, (pack_request(suspect),), is_alone=True))
        made.node.run()
        alone = [
            message for message in told if isinstance(message[-1], TokenEvent) and message[-1].request_id == suspect.id
        ]
        assert [event.position for event in alone[0] if isinstance(event, TokenEvent)] == [0]
