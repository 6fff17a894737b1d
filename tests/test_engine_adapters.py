"""Adapters come, go, and take turns in memory while the engine runs, and no request is lost or starved by it."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.adapter import Adapter
from engine.engine import Engine
from engine.event import AdapterWanted, Event
from engine.refusal import QueueFull, UnknownAdapter, Unsupported
from tests.engines import (
    Answer,
    ask,
    check_invariants,
    collect,
    paper_engine,
    random_adapter,
    serve,
    serve_one,
    tiny_engine,
    tiny_model,
)

MODEL = tiny_model()
X, Y, Z = (random_adapter(MODEL, 4, seed) for seed in (1, 2, 3))
BYTES = X.num_bytes


def serve_with(
    engine: Engine, adapters: dict[str, Adapter], each_step: Callable[[], None] = lambda: None
) -> dict[str, Answer]:
    """Run to the end, and bring each adapter that is wanted."""
    answers: dict[str, Answer] = {}
    for _ in range(2000):
        if not engine.has_work:
            return answers
        events = engine.step()
        collect(events, answers)
        check_invariants(engine)
        for name in wanted(events):
            engine.attach(name, adapters[name])
            check_invariants(engine)
        each_step()
    raise AssertionError("no end")


def wanted(events: list[Event]) -> list[str]:
    return [event.name for event in events if isinstance(event, AdapterWanted)]


def alone(adapter: Adapter | None, name: str = "r") -> list[int]:
    engine = tiny_engine()
    if adapter is not None:
        engine.attach("x", adapter)
    return serve_one(engine, ask(name, adapter=None if adapter is None else "x")).tokens


def crowded(num_adapters: int = 2, **options: int) -> Engine:
    """An engine with room for so many of x, y and z, which it knows all."""
    engine = tiny_engine(max_adapter_bytes=num_adapters * BYTES, **options)
    for name, adapter in (("x", X), ("y", Y), ("z", Z)):
        engine.attach(name, adapter)
    return engine


def test_an_adapter_attached_while_others_run_is_used_at_once() -> None:
    engine, answers = tiny_engine(), dict[str, Answer]()
    engine.add(ask("plain"))
    for _ in range(4):
        collect(engine.step(), answers)
    engine.attach("x", X)
    engine.add(ask("r", adapter="x"))
    while engine.has_work:
        collect(engine.step(), answers)
    assert answers["plain"].tokens == alone(None, "plain")
    assert answers["r"].tokens == alone(X)


def test_an_unknown_adapter_is_refused_with_the_names_of_the_known() -> None:
    engine = tiny_engine()
    engine.attach("x", X)
    with pytest.raises(UnknownAdapter, match=r"no adapter 'q' is attached; attached are x"):
        engine.add(ask("r", adapter="q"))
    with pytest.raises(UnknownAdapter):
        engine.detach("q")
    assert not engine.has_work


def test_detaching_an_adapter_in_use_takes_effect_after_its_last_user() -> None:
    engine, answers = tiny_engine(), dict[str, Answer]()
    engine.attach("x", X)
    engine.add(ask("r", adapter="x"))
    for _ in range(4):
        collect(engine.step(), answers)
    engine.detach("x")
    assert engine.stats().adapters == () and engine.stats().adapter_bytes == BYTES
    with pytest.raises(UnknownAdapter):
        engine.add(ask("late", adapter="x"))
    while engine.has_work:
        collect(engine.step(), answers)
    assert answers["r"].tokens == alone(X)
    assert engine.stats().adapter_bytes == 0


def test_a_new_version_serves_new_requests_and_the_old_one_those_that_have_it() -> None:
    engine, answers = tiny_engine(), dict[str, Answer]()
    engine.attach("x", X)
    engine.add(ask("r", adapter="x"))
    for _ in range(3):
        collect(engine.step(), answers)
    engine.attach("x", Y)
    engine.add(ask("s", ask("r").prompt, adapter="x"))
    while engine.has_work:
        collect(engine.step(), answers)
    assert (answers["r"].tokens, answers["s"].tokens) == (alone(X), alone(Y))
    assert engine.stats().adapter_bytes == BYTES


def test_requests_that_wait_in_the_queue_are_told_that_their_adapter_was_detached() -> None:
    engine, answers = tiny_engine(max_sequences=2), dict[str, Answer]()
    engine.attach("x", X)
    engine.add(ask("plain", n=2))
    engine.step()
    engine.add(ask("first", adapter="x", n=2))
    engine.add(ask("second", adapter="x", n=2))
    engine.detach("x")
    while engine.has_work:
        collect(engine.step(), answers)
        check_invariants(engine)
    for name in ("first", "second"):
        assert answers[name].reasons == {0: "error", 1: "error"}
        assert answers[name].messages[0] == "adapter 'x' was detached"
    assert answers["plain"].reasons == {0: "length", 1: "length"}


def test_the_least_recently_used_adapter_is_dropped_and_asked_for_again() -> None:
    engine = crowded(2)
    assert engine.stats().adapters == ("x", "y", "z")
    assert engine.stats().resident_adapters == ("y", "z")
    serve_one(engine, ask("touch", adapter="y"))
    engine.add(ask("r", adapter="x"))
    assert wanted(engine.step()) == ["x"]
    assert not engine.has_work  # it waits, and nothing is to be done
    assert engine.stats().num_waiting == 1
    engine.attach("x", X)
    assert engine.stats().resident_adapters == ("y", "x")
    assert serve_with(engine, {})["r"].tokens == alone(X)


def test_an_adapter_is_asked_for_once_however_many_wait() -> None:
    engine = crowded(2)
    for index in range(3):
        engine.add(ask(f"r{index}", adapter="x"))
    events = [event for _ in range(5) for event in engine.step()]
    assert wanted(events) == ["x"]
    engine.add(ask("r3", adapter="x"))
    assert wanted(engine.step()) == []
    engine.attach("x", X)
    answers = serve_with(engine, {})
    assert all(answers[f"r{index}"].tokens == alone(X, f"r{index}") for index in range(4))


def test_a_wanted_adapter_that_is_detached_ends_those_who_wait_for_it() -> None:
    engine = crowded(2)
    engine.add(ask("r", adapter="x", n=3))
    assert wanted(engine.step()) == ["x"]
    engine.detach("x")
    assert collect(engine.step(), {})["r"].reasons == {0: "error", 1: "error", 2: "error"}
    assert not engine.has_work


def test_a_request_that_waits_for_an_adapter_can_be_aborted() -> None:
    engine = crowded(2)
    engine.add(ask("r", adapter="x"))
    engine.step()
    assert engine.abort("r")
    check_invariants(engine)
    assert collect(engine.step(), {})["r"].reasons == {0: "abort"}
    engine.add(ask("again", adapter="x"))
    assert wanted(engine.step()) == ["x"]


def test_more_adapters_than_fit_take_turns_in_one_batch() -> None:
    engine, known = crowded(2), {"x": X, "y": Y, "z": Z}
    requests = [ask(f"{name} {index}", adapter=name) for index in range(4) for name in known]
    for request in requests:
        engine.add(request)
    answers = serve_with(engine, known)
    for request in requests:
        assert answers[request.id].tokens == alone(known[request.adapter or ""], request.id)


def test_an_adapter_in_use_without_end_does_not_keep_another_out_for_ever() -> None:
    engine, known = crowded(1, max_sequences=4), {"x": X, "y": Y, "z": Z}
    numbers = iter(range(1000))

    def more() -> None:
        if "victim" in engine.roster and engine.scheduler.num_waiting < 3:
            engine.add(ask(f"z {next(numbers)}", adapter="z", max_tokens=5))

    more()
    for _ in range(4):
        engine.add(ask(f"z {next(numbers)}", adapter="z", max_tokens=5))
    engine.add(ask("victim", adapter="x"))
    answers = serve_with(engine, known, more)
    assert answers["victim"].tokens == alone(X, "victim")
    assert next(numbers) < 30


def test_an_adapter_that_came_is_kept_for_those_who_waited_until_they_ran() -> None:
    engine, answers = crowded(1, max_sequences=2), dict[str, Answer]()
    engine.add(ask("r", adapter="x"))
    engine.add(ask("s", adapter="y"))
    assert wanted(engine.step()) == ["x"]
    engine.add(ask("plain", n=2))
    collect(engine.step(), answers)
    engine.add(ask("next", n=2))
    collect(engine.step(), answers)
    engine.attach("x", X)
    events = [event for _ in range(8) for event in engine.step()]  # all rows are taken
    assert wanted(events) == []
    collect(events, answers)
    answers |= serve_with(engine, {"y": Y})
    assert (answers["r"].tokens, answers["s"].tokens) == (alone(X, "r"), alone(Y, "s"))


def test_an_adapter_larger_than_all_room_is_refused_and_nothing_is_dropped_for_it() -> None:
    engine = crowded(2)
    with pytest.raises(Unsupported, match=rf"has {10 * BYTES} bytes .* adapters may have {2 * BYTES} together"):
        engine.attach("y", random_adapter(MODEL, 40))
    assert engine.stats().resident_adapters == ("y", "z")
    assert serve_one(engine, ask("r", adapter="y")).tokens == alone(Y)


def test_a_newer_version_that_can_never_fit_leaves_the_old_one_to_be_asked_for_and_holds_nobody_up() -> None:
    engine, known = crowded(1), {"x": X, "y": Y, "z": Z}
    with pytest.raises(Unsupported):
        engine.attach("x", random_adapter(MODEL, 8))
    for name in known:
        engine.add(ask(name, adapter=name))
    answers = serve_with(engine, known)
    assert all(answers[name].tokens == alone(known[name], name) for name in known)


def test_a_newer_version_for_which_there_is_no_room_yet_is_not_asked_for_until_there_is() -> None:
    engine, large = crowded(2), random_adapter(MODEL, 8)
    engine.add(ask("z", adapter="z", max_tokens=30))
    engine.step()
    with pytest.raises(QueueFull, match=rf"has {2 * BYTES} bytes; .* those in use have {BYTES}"):
        engine.attach("x", large)
    engine.add(ask("r", adapter="x"))
    assert wanted(engine.step()) == []
    assert serve_with(engine, {"x": large})["r"].tokens == alone(large)


def test_an_adapter_that_comes_when_all_room_is_in_use_is_refused_and_asked_for_again_later() -> None:
    engine = crowded(1)
    engine.add(ask("z", adapter="z", max_tokens=30))
    engine.step()
    with pytest.raises(QueueFull):
        engine.attach("x", X)
    engine.add(ask("r", adapter="x"))
    assert wanted(engine.step()) == []
    assert serve_with(engine, {"x": X})["r"].tokens == alone(X)


NAMES = ("a", "b", "c", "d")


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from(NAMES), st.integers(1, 6), st.none() | st.integers(0, 6)),
        min_size=1,
        max_size=14,
    ),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from(NAMES)), max_size=3),
    st.integers(0, 4),
)
@settings(max_examples=200, deadline=None)
def test_in_any_schedule_every_request_ends_and_adapters_have_the_users_they_say(
    visits: list[tuple[int, str, int, int | None]], room: int, detachments: list[tuple[int, str]], delay: int
) -> None:
    adapter = random_adapter(MODEL, 1)
    engine = paper_engine(max_adapter_bytes=room * adapter.num_bytes, max_sequences=4, num_blocks=12, block_size=4)
    engine.shelf.stack = lambda: None  # type: ignore[method-assign]
    for name in NAMES:
        engine.attach(name, adapter)
    on_their_way: list[tuple[int, str]] = []
    answers: dict[str, Answer] = {}
    accepted = set()
    for step in range(600):
        if step > 30 and not engine.has_work and all(when < step for when, _ in on_their_way):
            break
        for index, (comes, name, length, goes) in enumerate(visits):
            if comes == step and name in engine.stats().adapters:
                engine.add(ask(f"r{index}", [1] * length, adapter=name, max_tokens=4, n=1 + index % 2))
                accepted.add(f"r{index}")
            if goes is not None and comes + goes == step:
                engine.abort(f"r{index}")
        for when, name in detachments:
            if when == step and name in engine.stats().adapters:
                engine.detach(name)
        for when, name in on_their_way:
            if when == step and name in engine.stats().adapters:
                with suppress(QueueFull):  # who wanted it has gone, and others have the room
                    engine.attach(name, adapter)
        check_invariants(engine)
        if engine.has_work:
            events = engine.step()
            collect(events, answers)
            on_their_way += [(step + 1 + delay, name) for name in wanted(events)]
        check_invariants(engine)
    assert not engine.has_work and not engine.stats().num_waiting
    assert set(answers) == accepted
    assert all(len(answer.reasons) == 1 + int(name[1:]) % 2 for name, answer in answers.items())


def test_rows_of_different_ranks_share_one_batch() -> None:
    adapters = {f"rank {rank}": random_adapter(MODEL, rank, rank, down_proj=rank // 2) for rank in (1, 3, 16)}
    engine = tiny_engine()
    for name, adapter in adapters.items():
        engine.attach(name, adapter)
    answers = serve(engine, [ask(name, adapter=name) for name in adapters])
    assert {name: answer.tokens for name, answer in answers.items()} == {
        name: alone(adapter, name) for name, adapter in adapters.items()
    }
