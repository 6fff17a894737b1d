"""Request servers and model servers together, inline: everything but Ray."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors import model_stats, request_server
from actors.asking import ask_of
from actors.exits import KILL, SHUTDOWN
from actors.inline import Inline
from actors.messages import Attach, Detach, Events, Run
from actors.model_server import ModelServer
from actors.node import call, cast, exit, spawn
from actors.pid import Pid
from actors.polls import MAX_PIECES, End, Part, Poll
from actors.refusals import Conflict, JournalFailing, Overloaded, RequestPoisoned, Unavailable, UnknownRequest
from actors.request_server import RequestServer, Submit
from actors.request_stats import RequestServerStats
from actors.system_config import SystemConfig
from engine.event import TokenEvent
from engine.refusal import BadRequest, PromptTooLong, Refusal, UnknownAdapter
from engine.request import Request
from engine.wire import pack_events, pack_request
from tests.engines import Answer, ask
from tests.serving import OPTIONS, mixed_requests, quick_engine, tiny_choice, tiny_system, undisturbed, words_of


class Bench:
    """One partition and one model server on a clock of their own."""

    def __init__(self, node: Inline, config: SystemConfig) -> None:
        self.node = node
        self.config = config
        self.requests = self.start_requests()
        self.model = self.start_model()

    def start_requests(self) -> Pid:
        pid = spawn(RequestServer, self.config, 0, name=self.config.partition_names[0])
        self.node.run()
        return pid

    def start_model(self, number: int = 0) -> Pid:
        config = self.config
        start = config.choice, config.directory, config.partition_names, config.gather_seconds
        return spawn(ModelServer, *start, name=config.model_names[number])

    def submit(self, request: Request, **words: Any) -> None:
        message = Submit(ask_of(request.id, {**words_of(request), **words}))
        request_server.submit(self.requests, message)

    def poll(self, *wants: Request, had: dict[str, tuple[int, ...]] | None = None) -> dict[str, Part]:
        had = had or {}
        asked = {request.id: had.get(request.id, (0,) * request.sampling.n) for request in wants}
        return {part.id: part for part in request_server.poll(self.requests, Poll(dict(asked), wait_seconds=0))}

    def run(self, requests: list[Request]) -> dict[str, Part]:
        """To their ends, once the model is there."""
        self.node.run()
        for request in requests:
            self.submit(request)
        self.node.run()
        return self.poll(*requests)

    def stats(self) -> RequestServerStats:
        return request_server.stats(self.requests)

    def kill_model(self) -> None:
        exit(self.model, KILL)
        self.node.run()
        self.model = self.start_model()

    def kill_requests(self) -> None:
        self.release_journal()
        exit(self.requests, KILL)
        self.requests = self.start_requests()

    def release_journal(self) -> None:
        """What the kernel does for a process that dies."""
        cell = self.node._cells[self.requests]
        server = cell.loop.server
        assert isinstance(server, RequestServer)
        server.outbox.journal.close()

    def submit_to_nobody(self, request: Request, **words: Any) -> None:
        """Accepted, with no model server there any more."""
        self.node.run()
        exit(self.model, SHUTDOWN)
        self.node.run()
        self.submit(request, **words)


def gathered(directory: Path) -> dict[str, Any]:
    """Few rows, so that others wait while they are answered; and all the time to tell of them."""
    options = replace(OPTIONS, max_sequences=4)
    choice = tiny_choice(directory, make_engine="tests.serving:quick_engine", options=options)
    return {"choice": choice, "gather_seconds": 60.0}


@contextmanager
def bench(directory: Path, **changes: Any) -> Iterator[Bench]:
    with Inline() as node:
        quick = {"choice": tiny_choice(directory, make_engine="tests.serving:quick_engine")}
        made = Bench(node, tiny_system(directory, **quick | changes))
        yield made
        made.release_journal()


def same(part: Part, answer: Answer) -> bool:
    tokens: dict[int, list[int]] = {}
    reasons: dict[int, str] = {}
    for choice, position, _, new, reason, *_ in part.pieces:
        assert position == len(tokens.setdefault(choice, []))
        tokens[choice] += new
        if reason is not None:
            reasons[choice] = reason
    return tokens == answer.choices and reasons == answer.reasons


def test_answers_are_those_of_the_bare_engine(tmp_path: Path) -> None:
    requests = list(mixed_requests(20))
    with bench(tmp_path) as made:
        parts = made.run(requests)
        expected = undisturbed(tmp_path, requests, quick_engine)
        for request in requests:
            assert same(parts[request.id], expected[request.id]), request.id
            assert parts[request.id].end is not None
        counts = made.stats().counts
        assert (counts["stale_events"], counts["duplicate_events"], counts["gaps"]) == (0, 0, 0)


def test_a_request_that_crashes_whoever_reads_it_is_refused_and_ends_nobody(tmp_path: Path) -> None:
    (request,) = mixed_requests(1)
    with bench(tmp_path) as made:
        made.node.run()

        class Broken:
            def __getattr__(self, name: str) -> object:
                raise RuntimeError("no such luck")

        server = made.node._cells[made.requests].loop.server
        assert isinstance(server, RequestServer)
        sound, server.tokenizer = server.tokenizer, Broken()  # type: ignore[assignment]
        with pytest.raises(RequestPoisoned, match="the request cannot be read: RuntimeError: no such luck"):
            request_server.submit(made.requests, Submit(ask_of("text", {"prompt": "a text"})))
        server.tokenizer = sound
        made.submit(request)
        made.node.run()
        assert made.poll(request)[request.id].end is not None


def steps(node: Inline, count: int) -> None:
    """Let about so many messages be handled, and stop in the middle of everything."""
    looks = iter(range(count))
    node._wait(lambda: next(looks, None) is None or not node._has_work(), None)


@pytest.mark.parametrize("gathering", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_killed_in_between_answers_are_those_of_the_bare_engine(
    tmp_path: Path, seed: int, gathering: bool
) -> None:
    requests = list(mixed_requests(12))
    expected = undisturbed(tmp_path, requests, quick_engine)
    with bench(tmp_path, **gathered(tmp_path) if gathering else {}) as made:
        made.node.run()
        for request in requests:
            made.submit(request)
        for number in range(8):
            steps(made.node, 7 + (seed * 5 + number * 11) % 23)
            if (number + seed) % 3 == 0:
                made.kill_requests()
            else:
                made.kill_model()
        made.node.run()
        parts = made.poll(*requests)
        for request in requests:
            assert same(parts[request.id], expected[request.id]), request.id
        assert all(part.end is not None and part.end.code is None for part in parts.values())


def test_an_adapter_that_was_attached_meanwhile_outlives_the_model_server(tmp_path: Path) -> None:
    words = {"adapter": "green", "max_tokens": 20}
    first, again = (ask(name, range(9), **words) for name in ("undisturbed", "disturbed"))
    with bench(tmp_path) as made:
        made.node.run()
        assert call(made.model, Attach("green", "3")) is None
        assert call(made.model, Detach("red")) is None
        made.submit(first)
        made.node.run()
        made.submit(again)
        steps(made.node, 12)
        made.kill_model()
        made.node.run()
        parts = made.poll(first, again)
        assert len(parts["disturbed"].pieces) == 20 and parts["disturbed"].pieces == parts["undisturbed"].pieces
        assert made.stats().adapters == ("blue", "green")


def test_a_model_server_that_ends_in_order_leaves_nothing_behind(tmp_path: Path) -> None:
    (request,) = mixed_requests(1)
    with bench(tmp_path) as made:
        made.submit_to_nobody(request)
        server = made.node._cells[made.requests].loop.server
        assert isinstance(server, RequestServer)
        assert server.ledger.boards == {}


def test_a_late_message_of_a_dead_model_server_changes_nothing(tmp_path: Path) -> None:
    (request,) = mixed_requests(1)
    with bench(tmp_path) as made:
        made.node.run()
        made.submit(request)
        steps(made.node, 20)
        zombie = made.model
        made.kill_model()

        cast(made.requests, Events(zombie, pack_events([TokenEvent(request.id, 0, 0, 65)])))
        cast(made.requests, Events(zombie, b"\x93\x01rubbish"))
        made.node.run()
        expected = undisturbed(tmp_path, [request], quick_engine)
        assert same(made.poll(request)[request.id], expected[request.id])
        counts = made.stats().counts
        assert counts["stale_events"] + counts["late_events"] == 1 and counts["malformed_messages"] == 1


def test_a_stream_goes_on_behind_what_its_client_has(tmp_path: Path) -> None:
    request = next(request for request in mixed_requests(9) if request.sampling.n == 4)
    with bench(tmp_path) as made:
        made.node.run()
        made.submit(request)
        made.node.run()
        whole = made.poll(request)[request.id]
        rest = made.poll(request, had={request.id: (3, 0, 24, 10)})[request.id]
        assert rest.pieces == [p for p in whole.pieces if p[1] >= (3, 0, 24, 10)[p[0]]]
        for beyond in ((99, 0, 0, 0), (-1, 0, 0, 0), (0,)):
            end = made.poll(request, had={request.id: beyond})[request.id].end
            assert isinstance(end, End) and end.code == "unknown_request"


def test_a_long_answer_comes_in_parts_of_a_bounded_size(tmp_path: Path) -> None:
    request = ask("long", 5, max_tokens=MAX_PIECES + 40, n=2, temperature=1.0, seed=1)
    with bench(tmp_path) as made:
        made.node.run()
        made.submit(request)
        made.node.run()
        first = made.poll(request)["long"]
        assert (len(first.pieces), first.end) == (2 * MAX_PIECES, None)
        rest = made.poll(request, had={"long": (MAX_PIECES, MAX_PIECES)})["long"]
        assert len(rest.pieces) == 80 and rest.end is not None
        expected = undisturbed(tmp_path, [request], quick_engine)
        assert same(Part("long", [*first.pieces, *rest.pieces], rest.end), expected["long"])


def test_who_has_more_than_it_can_use_is_still_there(tmp_path: Path) -> None:
    (request,) = mixed_requests(1)
    with bench(tmp_path) as made:
        made.submit_to_nobody(request, lease_seconds=5.0)
        for _ in range(3):
            made.node.advance(4.0)
            assert request_server.poll(made.requests, Poll({}, 0, kept=(request.id,))) == []
        assert made.stats().num_living == 1


def test_what_a_client_submits_between_two_polls_is_told_in_the_second(tmp_path: Path) -> None:
    slow, quick = ask("slow", 5, max_tokens=300), ask("quick", 5, max_tokens=2)
    with bench(tmp_path) as made:
        made.node.run()
        made.submit(slow)
        request_server.submit(made.requests, Submit(ask_of("quick", words_of(quick)), "listener"))
        parts = request_server.poll(made.requests, Poll({"slow": (300,)}, 2.0, "listener"))
        assert [part.id for part in parts] == ["quick"]


def test_a_cancel_frees_the_engine_within_a_step(tmp_path: Path) -> None:
    request = replace(next(mixed_requests(1)), sampling=replace(next(mixed_requests(1)).sampling, max_tokens=200))
    with bench(tmp_path) as made:
        made.node.run()
        made.submit(request)
        steps(made.node, 30)
        assert request_server.cancel(made.requests, request.id) is True
        assert request_server.cancel(made.requests, request.id) is False
        engine = model_stats.stats(made.model).engine
        assert engine.num_running == 0 and engine.used_blocks == 0
        with pytest.raises(UnknownRequest):
            request_server.cancel(made.requests, "nobody")
        end = made.poll(request)[request.id].end
        assert end is not None and end.code is None


def test_a_client_that_vanishes_is_cancelled_after_its_lease(tmp_path: Path) -> None:
    (request,) = mixed_requests(1)
    with bench(tmp_path) as made:
        made.submit_to_nobody(request, lease_seconds=5.0)
        made.node.advance(4.0)
        assert made.stats().num_living == 1
        made.node.advance(2.0)
        assert made.stats().num_living == 0 and made.stats().counts["clients_lost"] == 1


def test_deadlines_end_what_is_late(tmp_path: Path) -> None:
    (request,) = mixed_requests(1)
    with bench(tmp_path) as made:
        made.submit_to_nobody(request, deadline_seconds=3.0, lease_seconds=None)
        made.node.advance(4.0)
        end = made.poll(request)[request.id].end
        assert end is not None and end.code == "deadline_passed"


def test_the_same_id_twice_is_one_request_also_after_a_restart_and_another_body_a_conflict(tmp_path: Path) -> None:
    (request,) = mixed_requests(1)
    with bench(tmp_path) as made:
        made.node.run()
        made.submit(request)
        made.submit(request)
        made.kill_requests()
        made.node.run()
        made.submit(request)
        assert made.stats().counts["accepted"] == 1
        with pytest.raises(Conflict):
            made.submit(request, max_tokens=3)


def test_expected_trouble_is_an_answer(tmp_path: Path) -> None:
    request, *_ = mixed_requests(1)
    with bench(tmp_path) as made:
        with pytest.raises(Unavailable):
            made.submit(request)
        made.node.run()
        cases: list[tuple[type[Refusal], dict[str, Any]]] = [
            (UnknownAdapter, {"adapter": "green"}),
            (PromptTooLong, {"prompt": (1,) * 600}),
            (BadRequest, {"prompt": (256,)}),
            (BadRequest, {"prompt": None}),
            (BadRequest, {"prompt": []}),
            (BadRequest, {"prompt": np.array([1, 2])}),
            (BadRequest, {"raw": "yes"}),
            (BadRequest, {"messages": [], "prompt": None}),
            (BadRequest, {"messages": [{"role": "user", "content": "hi"}], "prompt": None}),
            (BadRequest, {"n": 10**9}),
            (BadRequest, {"temperature": float("nan")}),
            (BadRequest, {"no_such_word": 1}),
            (BadRequest, {"deadline_seconds": -1.0}),
        ]
        for kind, words in cases:
            with pytest.raises(kind):
                made.submit(request, **words)
        assert made.stats().counts.get("accepted", 0) == 0
        made.submit(request)


def test_overload_is_refused_with_a_time_to_come_back(tmp_path: Path) -> None:
    from actors.ledger_options import LedgerOptions

    requests = list(mixed_requests(10))
    with bench(tmp_path, limits=LedgerOptions(max_owed_tokens=100)) as made:
        made.node.run()
        accepted = 0
        for request in requests:
            try:
                made.submit(request)
                accepted += 1
            except Overloaded as refusal:
                assert refusal.retry_after_seconds > 0
        assert 1 <= accepted < 10
        made.node.run()
        made.submit(requests[-1])


def test_a_full_disk_refuses_the_new_and_lets_the_running_go_on(tmp_path: Path) -> None:
    first, second, third = mixed_requests(3)
    with bench(tmp_path) as made:
        made.node.run()
        made.submit(first)
        server = made.node._cells[made.requests].loop.server
        assert isinstance(server, RequestServer)
        disk, whole = server.outbox.journal.disk, type(server.outbox.journal.disk).write
        disk.write = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))  # type: ignore[method-assign]
        with pytest.raises(JournalFailing, match="No space left"):
            made.submit(second)
        with pytest.raises(JournalFailing):
            made.submit(third)
        made.node.run()
        expected = undisturbed(tmp_path, [first, second], quick_engine)
        assert same(made.poll(first)[first.id], expected[first.id])
        disk.write = lambda *args: whole(disk, *args)  # type: ignore[method-assign]
        made.node.advance(1.0)
        made.submit(second)
        made.kill_requests()
        made.node.run()
        parts = made.poll(first, second)
        assert same(parts[first.id], expected[first.id]) and same(parts[second.id], expected[second.id])


def test_a_past_that_was_left_behind_is_read_once_and_then_made_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = list(mixed_requests(10))
    with bench(tmp_path) as made:
        told, counts, whole = made.run(requests), made.stats().counts, made.stats().journal_bytes
        monkeypatch.setattr("actors.outbox.MOST_PAST_BYTES", whole // 2)
        made.kill_requests()
        made.node.advance(0.5)
        assert made.stats().journal_bytes < whole
        made.kill_requests()
        assert made.stats().num_kept == len(requests) and made.stats().counts == counts
        assert made.poll(*requests) == told


def test_a_request_that_comes_again_while_it_runs_is_not_told_of_its_own_abort(tmp_path: Path) -> None:
    request = ask("again", 5, max_tokens=60)
    with bench(tmp_path) as made:
        made.node.run()
        made.submit(request)
        steps(made.node, 20)
        event = TokenEvent(request.id, 0, 50, 65)  # so something between was lost, and it is sent again
        cast(made.requests, Events(made.model, pack_events([event])))
        made.node.run()
        assert made.stats().counts["gaps"] == 1
        assert same(made.poll(request)[request.id], undisturbed(tmp_path, [request], quick_engine)[request.id])


def test_who_is_turned_away_from_running_alone_costs_the_others_nothing(tmp_path: Path) -> None:
    innocent, suspect = ask("innocent", 5, max_tokens=40), ask("suspect", 5, max_tokens=4, adapter="red")
    with bench(tmp_path) as made:
        made.node.run()
        made.submit(innocent)
        steps(made.node, 10)
        server = made.node._cells[made.model].loop.server
        assert isinstance(server, ModelServer)
        server.rack.broken["red"] = Unavailable("the adapter 'red' cannot be served")
        cast(made.model, Run(made.requests, (pack_request(suspect),), is_alone=True))
        made.node.run()
        assert same(made.poll(innocent)[innocent.id], undisturbed(tmp_path, [innocent], quick_engine)[innocent.id])


def test_a_second_owner_of_a_journal_waits_for_the_first_to_go(tmp_path: Path) -> None:
    with bench(tmp_path) as made:
        made.node.run()
        other = spawn(RequestServer, made.config, 0, name="other")
        made.node.advance(0.1)
        assert not request_server.stats(other).is_open
        exit(other, KILL)


def test_who_runs_alone_sets_the_others_aside_and_they_come_back_with_what_they_had(tmp_path: Path) -> None:
    requests = list(mixed_requests(6))
    with bench(tmp_path) as made:
        made.node.run()
        for request in requests[:5]:
            made.submit(request)
        steps(made.node, 25)
        # the sixth as a suspect: straight to the model server, which is asked what it does with it
        cast(made.model, Run(made.requests, (pack_request(requests[5]),), is_alone=True))
        steps(made.node, 2)
        assert model_stats.stats(made.model).alone in (requests[5].id, None)
        made.node.run()
        expected = undisturbed(tmp_path, requests, quick_engine)
        parts = made.poll(*requests[:5])
        for request in requests[:5]:
            assert same(parts[request.id], expected[request.id]), request.id


def test_a_drained_server_takes_nothing_new_and_finishes_what_it_has(tmp_path: Path) -> None:
    first, second = mixed_requests(2)
    with bench(tmp_path) as made:
        made.node.run()
        made.submit(first)
        request_server.drain(made.requests)
        with pytest.raises(Unavailable):
            made.submit(second)
        made.node.run()
        assert made.stats().num_living == 0
