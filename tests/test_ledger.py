"""The ledger under crashes at every point: nothing lost, nothing missing, repeated or different, and all of it ends."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.entry import Entry
from actors.ledger import Ledger
from actors.ledger_options import LedgerOptions
from actors.ledger_records import Record, from_plain, to_plain
from actors.refusals import Conflict, DeadlinePassed, Overloaded, UnknownRequest
from engine.completion import Piece
from engine.event import ChoiceEnded, Event, FinishReason, PromptScored, Started, TokenEvent, TokenLogprob
from engine.request import Request, Sampling
from engine.vocabulary import Vocabulary
from engine.wire import pack_events

VOCABULARY = Vocabulary([bytes([value]) for value in range(256)])


def request_of(name: str, max_tokens: int = 6, n: int = 1, **fields: object) -> Request:
    sampling = Sampling(max_tokens=max_tokens, n=n, logprobs=1 if n == 2 else None)
    return Request(name, (1, 2, 3), sampling, **fields)  # type: ignore[arg-type]


def token_of(name: str, choice: int, position: int) -> int:
    return 97 + hash((name, choice, position)) % 26


def event_at(request: Request, choice: int, position: int) -> TokenEvent:
    """What any engine says at this place: it depends on the request alone."""
    last = position == request.sampling.max_tokens - 1
    token = token_of(request.id, choice, position)
    logprob = None if request.sampling.logprobs is None else TokenLogprob(token, -position / 2, ((token, -1.0),))
    return TokenEvent(request.id, choice, position, token, "length" if last else None, logprob)


def text_of(request: Request, choice: int) -> str:
    return "".join(chr(token_of(request.id, choice, place)) for place in range(request.sampling.max_tokens))


def accept(ledger: Ledger, request: Request, now: float = 0.0, **more: float) -> list[Record]:
    record = ledger.accept(request, b"body of " + request.id.encode(), now, **more)
    return [] if record is None else [record]


def tell(ledger: Ledger, epoch: str, events: list[Event], now: float = 0.0) -> set[str]:
    return ledger.tell(epoch, events, pack_events(events), now)[1]


def started(*requests: Request) -> Ledger:
    ledger = Ledger(VOCABULARY)
    ledger.model_up("model/1")
    for request in requests:
        accept(ledger, request)
    ledger.dispatch(0.0)
    return ledger


def through_journal(records: Iterable[Record]) -> list[Record]:
    return [from_plain(msgpack.unpackb(msgpack.packb(to_plain(record)), strict_map_key=False)) for record in records]


# Accepting


def test_the_same_id_with_the_same_body_is_the_same_request() -> None:
    ledger = Ledger(VOCABULARY)
    assert len(accept(ledger, request_of("a"))) == 1
    assert accept(ledger, request_of("a")) == []
    assert ledger.counts["accepted"] == 1


def test_the_same_id_with_another_body_is_a_conflict_and_changes_nothing() -> None:
    ledger = started(request_of("a"))
    with pytest.raises(Conflict):
        ledger.accept(request_of("a", 9), b"other", 0.0)
    with pytest.raises(Conflict):
        ledger.accept(request_of("a", tenant="other"), b"body of a", 0.0)
    assert ledger.find("a").request.sampling.max_tokens == 6


def test_work_beyond_the_bound_is_refused_with_a_time_to_come_back() -> None:
    ledger = Ledger(VOCABULARY, LedgerOptions(max_owed_tokens=20))
    accept(ledger, request_of("a"))
    accept(ledger, request_of("b"))
    with pytest.raises(Overloaded) as refusal:
        accept(ledger, request_of("c"))
    assert 0 < refusal.value.retry_after_seconds <= 60
    ledger.cancel("a", 0.0)
    assert accept(ledger, request_of("c"))


def test_a_request_larger_than_the_bound_is_taken_when_nothing_else_waits() -> None:
    ledger = Ledger(VOCABULARY, LedgerOptions(max_owed_tokens=20))
    assert accept(ledger, request_of("a", max_tokens=100))


def test_a_deadline_that_cannot_be_kept_is_refused_at_once() -> None:
    ledger = started(*(request_of(f"r{number}", 100) for number in range(10)))
    with pytest.raises(DeadlinePassed):
        accept(ledger, request_of("late"), 5.0, deadline=5.0)
    for step in range(10):
        tell(ledger, "model/1", [event_at(request_of("r0", 100), 0, step)], now=float(step))
    with pytest.raises(DeadlinePassed, match="too short"):  # at a token a second, were it alone
        accept(ledger, request_of("soon"), 10.0, deadline=11.0)
    with pytest.raises(Overloaded):  # because of the others
        accept(ledger, request_of("soon"), 10.0, deadline=30.0)
    assert accept(ledger, request_of("whenever"), 10.0, deadline=10_000.0)


def test_a_deadline_before_any_token_ever_came_is_refused_at_once_also_where_nothing_waits() -> None:
    ledger = started(request_of("a"))
    tell(ledger, "model/1", [event_at(request_of("a"), 0, place) for place in range(6)], now=0.5)
    assert ledger.load.owed_tokens == 0
    with pytest.raises(DeadlinePassed, match="too short"):
        accept(ledger, request_of("soon"), 10.0, deadline=10.4)
    assert ledger.counts["accepted"] == 1
    assert accept(ledger, request_of("later"), 10.0, deadline=10.6)


def test_owed_work_returns_to_nothing() -> None:
    requests = [request_of("a"), request_of("b", n=4), request_of("c")]
    ledger = started(*requests)
    tell(ledger, "model/1", [event_at(requests[0], 0, place) for place in range(6)])
    ledger.model_down("model/1", None, 1.0)
    ledger.cancel("b", 2.0)
    ledger.cancel("c", 2.0)
    assert ledger.load.owed_tokens == 0


def test_a_withdrawn_request_leaves_nothing() -> None:
    ledger = Ledger(VOCABULARY)
    accept(ledger, request_of("a"))
    ledger.withdraw("a")
    ledger.model_up("model/1")
    assert ledger.dispatch(0.0) == [] and ledger.load.owed_tokens == 0 and not ledger.entries
    assert accept(ledger, request_of("a"))


# Events


def test_a_stale_epoch_is_dropped_and_counted() -> None:
    request = request_of("a")
    ledger = started(request)
    tell(ledger, "model/1", [event_at(request, 0, 0)])
    ledger.model_down("model/1", None, 1.0)
    ledger.model_up("model/2")
    ledger.dispatch(1.0)
    assert tell(ledger, "model/1", [event_at(request, 0, 1)]) == set()
    assert tell(ledger, "forged/9", [event_at(request, 0, 1)]) == set()
    assert ledger.counts["stale_events"] == 2
    assert ledger.find("a").num_tokens == 1


def test_a_position_that_came_is_dropped_and_counted() -> None:
    request = request_of("a")
    ledger = started(request)
    tell(ledger, "model/1", [event_at(request, 0, 0), event_at(request, 0, 0)])
    tell(ledger, "model/1", [event_at(request, 0, 0)])
    assert ledger.counts["duplicate_events"] == 2
    assert ledger.find("a").num_tokens == 1


def test_a_position_left_out_sends_the_request_again() -> None:
    request = request_of("a")
    ledger = started(request)
    tell(ledger, "model/1", [event_at(request, 0, 0), event_at(request, 0, 2)])
    assert ledger.counts["gaps"] == 1
    (attempt,) = ledger.dispatch(0.0)
    assert attempt.ids == ("a",)
    assert ledger.find("a").to_send().resumed == ((token_of("a", 0, 0),),)


def test_forged_choices_positions_and_ids_do_no_harm() -> None:
    ledger = started(request_of("a"))
    forged: list[Event] = [
        TokenEvent("a", 7, 0, 97),
        TokenEvent("a", -1, 0, 97),
        TokenEvent("a", 0, -5, 97),
        TokenEvent("nobody", 0, 0, 97),
        ChoiceEnded("a", 3, "stop"),
    ]
    assert tell(ledger, "model/1", forged) == set()
    assert ledger.find("a").num_tokens == 0


def test_started_and_prompt_scores_are_taken_once() -> None:
    ledger = started(request_of("a"))
    scores = (TokenLogprob(1, -1.0, ()),)
    tell(ledger, "model/1", [Started("a", 2), PromptScored("a", scores)])
    ledger.model_down("model/1", None, 1.0)
    ledger.model_up("model/2")
    ledger.dispatch(1.0)
    tell(ledger, "model/2", [Started("a", 3), PromptScored("a", ())])
    completion = ledger.find("a").transcript.completion()
    assert completion.usage.cached_tokens == 2 and completion.prompt_logprobs == scores


# Crashes


def test_a_dead_model_servers_requests_are_sent_again_with_their_tokens() -> None:
    request = request_of("a", n=2)
    ledger = started(request)
    tell(ledger, "model/1", [event_at(request, 0, 0), event_at(request, 1, 0), event_at(request, 1, 1)])
    assert ledger.model_down("model/1", None, 1.0) is not None
    assert ledger.dispatch(1.0) == [], "there is nobody to send it to"
    ledger.model_up("model/2")
    (attempt,) = ledger.dispatch(1.0)
    assert (attempt.epoch, attempt.ids, attempt.is_alone) == ("model/2", ("a",), False)
    assert [len(tokens) for tokens in ledger.find("a").to_send().resumed] == [1, 2]


def crash(ledger: Ledger, number: int, alone: str | None = None) -> list[tuple[tuple[str, ...], bool]]:
    ledger.model_down(f"model/{number}", alone, float(number))
    ledger.model_up(f"model/{number + 1}")
    return [(attempt.ids, attempt.is_alone) for attempt in ledger.dispatch(float(number))]


def test_a_request_on_board_of_two_crashes_is_tried_alone_and_two_more_end_it() -> None:
    innocent, poison = request_of("innocent"), request_of("poison")
    ledger = started(innocent, poison)
    assert crash(ledger, 1) == [(("innocent", "poison"), False)]
    tell(ledger, "model/2", [event_at(innocent, 0, 0)])
    assert crash(ledger, 2) == [(("poison",), True), (("innocent",), False)]
    assert crash(ledger, 3, alone="poison") == [(("poison",), True), (("innocent",), False)]
    assert crash(ledger, 4, alone="poison") == [(("innocent",), False)]
    ended = ledger.find("poison").ended
    assert ended is not None and ended.code == "request_poisoned"
    assert ledger.find("poison").transcript.completion().finish_reason == "error"
    tell(ledger, "model/5", [event_at(innocent, 0, place) for place in range(1, 6)])
    assert ledger.find("innocent").transcript.completion().text == text_of(innocent, 0)


def test_who_waits_while_another_runs_alone_is_not_blamed() -> None:
    ledger = started(request_of("a"), request_of("b"))
    crash(ledger, 1)
    crash(ledger, 2)
    for number in (3, 4):
        crash(ledger, number, alone="a")
    assert ledger.find("a").is_finished
    assert ledger.find("b").crashes == 2 and ledger.find("b").crashes_alone == 0


def test_progress_clears_a_suspicion() -> None:
    request = request_of("a", max_tokens=50)
    ledger = started(request)
    for number in range(1, 40):
        tell(ledger, f"model/{number}", [event_at(request, 0, number - 1)])
        assert crash(ledger, number) == [(("a",), False)]
    assert not ledger.find("a").is_finished


def test_leaving_in_order_blames_nobody() -> None:
    ledger = started(request_of("a"))
    for number in range(1, 9):
        assert ledger.release(f"model/{number}", 0.0) is not None
        ledger.model_busy(f"model/{number}")
        ledger.model_up(f"model/{number + 1}")
        assert [attempt.is_alone for attempt in ledger.dispatch(0.0)] == [False]


# Ends


def test_a_deadline_ends_a_request_and_keeps_what_it_had() -> None:
    request = request_of("a")
    ledger = Ledger(VOCABULARY)
    ledger.model_up("model/1")
    accept(ledger, request, deadline=10.0)
    ledger.dispatch(0.0)
    tell(ledger, "model/1", [event_at(request, 0, 0)])
    assert list(ledger.expire(9.9)) == []
    ((ended, epoch),) = ledger.expire(10.0)
    assert (ended.code, epoch) == ("deadline_passed", "model/1")
    assert ledger.find("a").transcript.completion().tokens == (token_of("a", 0, 0),)
    assert tell(ledger, "model/1", [event_at(request, 0, 1)]) == set()


def test_a_client_that_vanishes_is_cancelled_when_its_lease_ends_and_not_while_it_asks() -> None:
    ledger = Ledger(VOCABULARY)
    accept(ledger, request_of("a"), lease_seconds=5.0)
    accept(ledger, request_of("kept"))
    ledger.find("a").seen_at = 4.0
    assert list(ledger.expire(8.9)) == []
    assert [ended.id for ended, _ in ledger.expire(9.0)] == ["a"]
    assert not ledger.find("kept").is_finished


def test_cancelling_twice_or_after_the_end_changes_nothing_and_a_foreign_id_is_unknown() -> None:
    ledger = started(request_of("a", tenant="me"))
    assert ledger.cancel("a", 0.0, "me") is not None
    assert ledger.cancel("a", 0.0, "me") is None
    assert ledger.find("a", "me").transcript.completion().finish_reason == "abort"
    for name, tenant in (("a", "you"), ("b", "me")):
        with pytest.raises(UnknownRequest):
            ledger.cancel(name, 0.0, tenant)


def test_finished_answers_are_kept_for_a_while_and_not_without_bound() -> None:
    ledger = Ledger(VOCABULARY, LedgerOptions(keep_seconds=10.0, max_kept=3))
    for number in range(5):
        accept(ledger, request_of(f"r{number}"), float(number))
        ledger.cancel(f"r{number}", float(number))
    ledger.forget(5.0)
    assert sorted(ledger.entries) == ["r2", "r3", "r4"]
    ledger.forget(13.0)
    assert sorted(ledger.entries) == ["r4"]


def compacted(ledger: Ledger) -> Ledger:
    """As it is after a compaction and a restart."""
    again = Ledger(VOCABULARY, ledger.options)
    again.replay(through_journal(ledger.snapshot(1.0)))
    return again


def ended(*requests: Request, options: LedgerOptions | None = None) -> Ledger:
    ledger = Ledger(VOCABULARY, options)
    ledger.model_up("model/1")
    for moment, request in enumerate(requests):
        accept(ledger, request, float(moment))
        ledger.dispatch(float(moment))
        places = range(request.sampling.max_tokens)
        tell(ledger, "model/1", [event_at(request, 0, place) for place in places], float(moment))
    return ledger


def test_an_answer_that_ended_before_a_compaction_is_told_as_before() -> None:
    request = request_of("a")
    ledger = ended(request)
    before = shown(ledger.find("a"))
    again = compacted(ledger)
    for one in (ledger, again):
        assert one.entries == {} and (one.num_living, one.num_finished) == (0, 1)
        assert shown(one.find("a")) == before
        assert (one.num_living, one.num_finished) == (0, 1)
        assert accept(one, request) == [] and one.cancel("a", 2.0) is None
        with pytest.raises(Conflict):
            one.accept(request, b"something else", 2.0)


def test_a_long_history_is_several_records_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.entry.MOST_EVENTS", 4)
    done, living = request_of("done", max_tokens=9, n=2), request_of("living", max_tokens=30)
    ledger = started(done, living)
    ends = [event_at(done, choice, place) for choice in range(2) for place in range(9)]
    tell(ledger, "model/1", [*ends, *(event_at(living, 0, place) for place in range(13))])
    ledger.model_down("model/1", None, 0.0)
    ledger.model_up("model/2")
    ledger.dispatch(0.0)
    before = [shown(ledger.find(name)) for name in ("done", "living")]
    assert ledger.find("living").crashes == 1
    again = compacted(compacted(ledger))
    assert [shown(again.find(name)) for name in ("done", "living")] == before
    assert again.counts == ledger.counts and again.load.owed_tokens == ledger.load.owed_tokens


def test_a_request_that_could_not_be_written_down_is_withdrawn_though_it_was_cancelled_meanwhile() -> None:
    ledger = started(request_of("a"), request_of("b"))
    ledger.cancel("a", 0.0)
    for name in ("a", "b"):
        ledger.withdraw(name)
    assert (ledger.num_living, ledger.num_finished, ledger.load.owed_tokens) == (0, 0, 0)
    assert not any(ledger.counts.values()) and list(ledger.snapshot(1.0))[1:-1] == []
    ledger.forget(1000.0)


def test_what_was_counted_is_still_counted_after_a_compaction_and_a_restart() -> None:
    ledger = ended(request_of("a"), request_of("b"))
    tell(ledger, "model/1", [event_at(request_of("a"), 0, 0)])
    assert (ledger.counts["accepted"], ledger.counts["tokens"], ledger.counts["late_events"]) == (2, 12, 1)
    assert compacted(compacted(ledger)).counts == ledger.counts


def test_an_answer_in_the_archive_is_forgotten_in_time_and_in_its_turn() -> None:
    names = [f"r{number}" for number in range(5)]
    ledger = compacted(
        ended(*(request_of(name) for name in names), options=LedgerOptions(keep_seconds=10.0, max_kept=3))
    )
    ledger.find("r2")  # is asked for, and keeps its turn
    ledger = compacted(ledger)
    ledger.forget(5.0)
    assert [name for name in names if ledger.knows(name)] == ["r2", "r3", "r4"]
    ledger.forget(13.0)
    assert [name for name in names if ledger.knows(name)] == ["r4"]
    assert ledger.num_finished == 1
    assert len(accept(ledger, request_of("r3"), 14.0)) == 1  # its id is free again
    assert ledger.num_living == 1


def test_an_answer_in_the_archive_is_kept_as_long_on_another_clock() -> None:
    ledger = ended(request_of("a"), options=LedgerOptions(keep_seconds=10.0))
    ledger.open(1.0, "boot")
    again = compacted(ledger)
    again.open(1001.0, "next boot")
    again.forget(1009.0)
    assert again.find("a").finished_at == 1000.0
    again.forget(1011.0)
    assert not again.knows("a")


def test_a_client_gets_what_comes_after_what_it_has() -> None:
    request = request_of("a", n=2)
    ledger = started(request)
    tell(ledger, "model/1", [event_at(request, 0, 0), event_at(request, 0, 1), event_at(request, 1, 0)])
    ledger.cancel("a", 0.0)
    pieces = ledger.find("a").since((1, 1))
    assert [(piece.choice, piece.position, piece.finish_reason) for piece in pieces] == [
        (0, 1, None),
        (0, 2, "abort"),
        (1, 1, "abort"),
    ]
    assert ledger.find("a").since((3, 2)) == []


# Placement


def test_requests_go_where_their_beginning_is_unless_that_is_too_full() -> None:
    ledger = Ledger(VOCABULARY, LedgerOptions(max_choices_on_board=8, num_active=2))
    for epoch in ("left/1", "right/1"):
        ledger.model_up(epoch)
    homes = []
    for number in range(16):
        accept(ledger, Request(f"r{number}", (5, 5, 5), Sampling(max_tokens=4)))
        homes.append(ledger.dispatch(0.0)[0].epoch)
    assert homes[0] == homes[1] == homes[2]
    assert homes.count("left/1") == homes.count("right/1") == 8


def test_a_spare_gets_nothing_until_the_other_dies_and_then_keeps_what_it_has() -> None:
    ledger = Ledger(VOCABULARY)
    for epoch in ("model-0/1", "model-1/1"):
        ledger.model_up(epoch)
    for name in ("a", "b"):
        accept(ledger, request_of(name))
    assert [attempt.epoch for attempt in ledger.dispatch(0.0)] == ["model-0/1"]
    ledger.model_down("model-0/1", None, 1.0)
    assert [attempt.epoch for attempt in ledger.dispatch(1.0)] == ["model-1/1"]
    ledger.model_up("model-0/2")
    accept(ledger, request_of("c"))
    assert [attempt.epoch for attempt in ledger.dispatch(1.0)] == ["model-1/1"]


def test_lanes_that_wait_are_served_in_turns_and_a_newcomer_begins_where_the_others_are() -> None:
    ledger = Ledger(VOCABULARY, LedgerOptions(max_choices_on_board=1))
    ledger.model_up("model/1")
    for number in range(20):
        accept(ledger, request_of(f"many-{number}", tenant="many"))

    def sent_next() -> str:
        ((name,),) = [attempt.ids for attempt in ledger.dispatch(0.0)]
        ledger.cancel(name, 0.0, ledger.entries[name].request.tenant)
        return name

    assert [sent_next() for _ in range(5)] == [f"many-{number}" for number in range(5)]
    for number in range(3):
        accept(ledger, request_of(f"few-{number}", tenant="few"))
        accept(ledger, request_of(f"voice-{number}", tenant="many", adapter="voice"))
    order = [sent_next() for _ in range(9)]
    assert {name.partition("-")[0] for name in order[:3]} == {"many", "few", "voice"}
    for lane in ("few", "voice", "many"):
        mine = [name for name in order if name.startswith(lane)]
        assert len(mine) == 3 and mine == sorted(mine)
    accept(ledger, request_of("urgent", tenant="other", priority=-1))
    assert sent_next() == "urgent"


def test_who_waits_behind_those_of_another_priority_gets_a_share() -> None:
    ledger = Ledger(VOCABULARY, LedgerOptions(max_choices_on_board=1))
    ledger.model_up("model/1")
    for number in range(20):
        accept(ledger, request_of(f"many-{number}", tenant="many"))
    for number in range(5):
        accept(ledger, request_of(f"low-{number}", tenant="few", priority=1))
    order = []
    for _ in range(12):
        ((name,),) = [attempt.ids for attempt in ledger.dispatch(0.0)]
        ledger.cancel(name, 0.0, ledger.entries[name].request.tenant)
        order.append(name.partition("-")[0])
    assert [order[:6].count("low"), order.count("low")] == [2, 4]


def test_what_does_not_fit_waits_in_order_of_priority_then_arrival() -> None:
    ledger = Ledger(VOCABULARY, LedgerOptions(max_choices_on_board=2))
    ledger.model_up("model/1")
    for name, priority in (("a", 0), ("b", 0), ("c", 0), ("d", -1)):
        accept(ledger, request_of(name, priority=priority))
    assert ledger.dispatch(0.0)[0].ids == ("d", "a")
    ledger.cancel("d", 0.0)
    assert ledger.dispatch(0.0)[0].ids == ("b",)


# Recovery


def test_another_clock_leaves_a_deadline_as_far_away_as_it_was() -> None:
    ledger = Ledger(VOCABULARY)
    records: list[Record] = [ledger.open(1000.0, "boot one")]
    records += accept(ledger, request_of("a"), 1000.0, deadline=1060.0)
    again = Ledger(VOCABULARY)
    again.replay(through_journal(records))
    again.open(3.0, "boot two")
    assert again.find("a").accepted.deadline == 63.0


@dataclass
class FakeModel:
    """A model server: it runs what it is given, one token a step, and tells the truth."""

    epoch: str
    running: dict[str, Request] = field(default_factory=dict)
    alone: list[str] = field(default_factory=list)

    def take(self, request: Request, is_alone: bool) -> None:
        self.running[request.id] = request
        if is_alone:
            self.alone.append(request.id)

    @property
    def lonely(self) -> str | None:
        self.alone = [name for name in self.alone if name in self.running]
        return self.alone[0] if self.alone else None

    def step(self) -> list[Event]:
        events: list[Event] = []
        for request in [self.running[self.lonely]] if self.lonely else list(self.running.values()):
            had = request.resumed or ((),) * request.sampling.n
            made = []
            for choice, tokens in enumerate(had):
                if len(tokens) < request.sampling.max_tokens:
                    events.append(event_at(request, choice, len(tokens)))
                    tokens = (*tokens, events[-1].token)  # type: ignore[union-attr]
                else:
                    reason: FinishReason = "length"
                    events.append(ChoiceEnded(request.id, choice, reason))
                made.append(tokens)
            self.running[request.id] = Request(request.id, request.prompt, request.sampling, resumed=tuple(made))
            if all(len(tokens) == request.sampling.max_tokens for tokens in made):
                del self.running[request.id]
        if self.lonely:
            self.alone.pop(0)  # it got further
        return events


class World:
    """Request server, journal, model server and clients, with everything that can go wrong at random."""

    def __init__(self, seed: int, poisons: int) -> None:
        self.random = random.Random(seed)
        self.requests = [request_of(f"r{number}", 1 + number % 7, 1 + number % 3) for number in range(12)]
        self.poisons = {f"r{number}" for number in self.random.sample(range(12), poisons)}
        self.journal: list[bytes] = []
        self.ledger = Ledger(VOCABULARY, LedgerOptions(max_choices_on_board=10))
        self.write([self.ledger.open(0.0, "boot")])
        self.number = 0
        self.now = 0.0
        self.got: dict[str, list[list[Piece]]] = {}
        self.old_messages: list[tuple[str, list[Event]]] = []
        self.innocent_crashes_in_row = 0
        self.start_model()

    def write(self, records: Iterable[Record | None]) -> None:
        self.journal += [msgpack.packb(to_plain(record)) for record in records if record is not None]

    def start_model(self) -> None:
        self.number += 1
        self.model = FakeModel(f"model/{self.number}")
        self.ledger.model_up(self.model.epoch)

    def dispatch(self) -> None:
        for attempt in self.ledger.dispatch(self.now):
            self.write([attempt])
            if self.random.random() < 0.03:
                return self.kill_request_server()  # between writing and sending
            for name in attempt.ids:
                self.model.take(self.ledger.find(name).to_send(), attempt.is_alone)

    def step(self) -> None:
        lonely = self.model.lonely
        running = {lonely} if lonely else set(self.model.running)
        if running & self.poisons:
            return self.kill_model()
        events = self.model.step()
        if not events:
            return
        self.old_messages.append((self.model.epoch, events))
        if self.random.random() < 0.03:
            return self.kill_request_server()  # the message is lost with its receiver
        record, _ = self.ledger.tell(self.model.epoch, events, pack_events(events), self.now)
        self.write([record])

    def kill_model(self) -> None:
        lonely = self.model.lonely
        self.write([self.ledger.model_down(self.model.epoch, lonely, self.now)])
        self.start_model()

    def kill_request_server(self) -> None:
        self.ledger = Ledger(VOCABULARY, self.ledger.options)
        self.ledger.replay(from_plain(msgpack.unpackb(data, strict_map_key=False)) for data in self.journal)
        self.write([self.ledger.open(self.now, "boot")])
        for epoch in list(self.ledger.boards):
            if epoch != self.model.epoch:
                self.write([self.ledger.model_down(epoch, None, self.now)])
        self.ledger.model_up(self.model.epoch)
        self.write([self.ledger.release(self.model.epoch, self.now)])

    def compact(self) -> None:
        self.journal = [msgpack.packb(to_plain(record)) for record in self.ledger.snapshot(self.now)]

    def replay_old_message(self) -> None:
        if self.old_messages:
            epoch, events = self.random.choice(self.old_messages)
            record, _ = self.ledger.tell(epoch, events, pack_events(events), self.now)
            self.write([record])

    def read(self, entry: Entry) -> None:
        got = self.got.setdefault(entry.id, [[] for _ in entry.pieces])
        for piece in entry.since(tuple(map(len, got))):
            got[piece.choice].append(piece)

    def accept_next(self) -> None:
        if self.requests:
            self.write(accept(self.ledger, self.requests.pop(0), self.now))

    def run(self) -> None:
        everything = list(self.requests)
        for _ in range(4000):
            self.now += 0.1
            self.dispatch()
            action = self.random.random()
            if action < 0.1:
                self.accept_next()
            elif action < 0.13 and not self.model.lonely:
                self.kill_model()
            elif action < 0.16:
                self.kill_request_server()
            elif action < 0.18:
                self.compact()
            elif action < 0.24:
                self.replay_old_message()
            else:
                self.step()
            for name in (request.id for request in everything):
                if self.ledger.knows(name) and self.random.random() < 0.5:
                    self.read(self.ledger.find(name))
            if not self.requests and all(entry.is_finished for entry in self.ledger.entries.values()):
                break
        for request in everything:
            self.check(request)

    def check(self, request: Request) -> None:
        entry = self.ledger.find(request.id)
        assert entry.is_finished, f"{request.id} never ended"
        self.read(entry)
        if request.id in self.poisons:
            assert entry.ended is not None and entry.ended.code == "request_poisoned"
            return
        assert entry.ended is None
        for choice, pieces in enumerate(self.got[request.id]):
            assert [piece.position for piece in pieces if piece.tokens] == list(range(request.sampling.max_tokens))
            assert "".join(piece.text for piece in pieces) == text_of(request, choice)
            assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
            assert pieces[-1].finish_reason == "length"


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), poisons=st.integers(0, 2))
def test_whatever_crashes_and_when_every_request_ends_with_its_own_tokens_once_and_in_order(
    seed: int, poisons: int
) -> None:
    World(seed, poisons).run()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_a_replayed_ledger_is_the_ledger(seed: int) -> None:
    world = World(seed, 1)
    names = [request.id for request in world.requests]
    for _ in range(world.random.randrange(150)):
        world.now += 0.1
        world.dispatch()
        world.random.choice([world.step, world.step, world.accept_next, world.kill_model, world.compact])()
    again = Ledger(VOCABULARY, world.ledger.options)
    again.replay(from_plain(msgpack.unpackb(data, strict_map_key=False)) for data in world.journal)
    assert (again.num_living, again.num_finished) == (world.ledger.num_living, world.ledger.num_finished)
    assert [name for name in names if again.knows(name)] == [name for name in names if world.ledger.knows(name)]
    living = [[name for name, entry in one.entries.items() if not entry.is_finished] for one in (again, world.ledger)]
    assert living[0] == living[1]  # in the same order
    for name in filter(again.knows, names):
        assert shown(again.look(name)) == shown(world.ledger.look(name))
    assert again.load.owed_tokens == world.ledger.load.owed_tokens
    assert {name: board.ids for name, board in again.boards.items() if board.ids} == {
        name: board.ids for name, board in world.ledger.boards.items() if board.ids
    }


def shown(entry: Entry | None) -> tuple[object, ...]:
    assert entry is not None
    return (
        entry.request,
        entry.accepted,
        entry.pieces,
        entry.transcript.completion(),
        entry.epoch,
        entry.is_alone,
        entry.crashes,
        entry.crashes_alone,
        entry.ended,
        entry.finished_at,
        entry.owed,
    )
