"""What a model server keeps to itself for a while, and what it does not."""

from pathlib import Path

import pytest

from actors import model_server
from actors.messages import Abort
from actors.node import cast
from actors.polls import Part
from engine.event import Event, TokenEvent
from engine.request import Request
from tests.engines import ask
from tests.serving import mixed_requests, quick_engine, undisturbed
from tests.test_request_server import bench, gathered, same, steps

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
    requests = [ask(f"long-{number}", 5, max_tokens=400) for number in range(12)]
    with bench(tmp_path, **gathered(tmp_path)) as made:
        made.node.run()
        for request in requests:
            made.submit(request)
        steps(made, 60)
        before = len(told)
        steps(made, 20)
        assert len(told) == before
        made.node._clock += 61.0
        steps(made, 20)
        assert len(told) == before + 1


def test_what_is_kept_is_told_when_the_others_are_cancelled(tmp_path: Path, told: Told) -> None:
    """No step comes any more that could bring it out."""
    requests = [ask(f"long-{number}", 5, max_tokens=400) for number in range(12)]
    with bench(tmp_path, **gathered(tmp_path)) as made:
        made.node.run()
        for request in requests:
            made.submit(request)
        steps(made, 80)
        before = len(told)
        cast(made.model, Abort(tuple(request.id for request in requests)))
        made.node.run()
        assert len(told) == before + 1
