"""engine/scheduler.py: whatever comes and goes, everything ends, nothing leaks, and nobody is overtaken for ever.

The engine runs on paper: cells of its cache hold the tokens themselves, so a block in wrong hands gives wrong text.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.event import ChoiceEnded, Started
from engine.request import Request
from engine.sequence import Status
from tests.engines import (
    PAPER_CONFIG,
    Answer,
    PaperRunner,
    ask,
    check_invariants,
    collect,
    made_up,
    paper_answer,
    paper_engine,
    run,
)


@dataclass(frozen=True)
class Visit:
    """A request, the step it comes in, and after how many steps its sender goes away."""

    request: Request
    comes: int
    goes: int | None


def paper_ask(name: str, prompt: int, shared: int = 0, **settings: Any) -> Request:
    """A request whose prompt begins with so many tokens that others begin with too."""
    tokens = made_up("shared", shared, PAPER_CONFIG.vocab_size) + made_up(name, prompt, PAPER_CONFIG.vocab_size)
    return ask(name, tokens, **settings)


def visits(count: int, seed: int) -> list[Visit]:
    """So many requests of all kinds, that come and go at random."""
    chance = Random(seed)
    return [
        Visit(
            paper_ask(
                f"r{index}",
                chance.randint(1, 14),
                chance.randint(0, 9),
                max_tokens=chance.randint(1, 12),
                n=chance.choice((1, 1, 1, 2, 4)),
                tenant=chance.choice("ab"),
                priority=chance.randint(-2, 2),
                stop_token_ids=tuple(range(chance.choice((0, 0, 12)))),
            ),
            comes=chance.randint(0, 20),
            goes=chance.choice((None, chance.randint(0, 15))),
        )
        for index in range(count)
    ]


SCHEDULES = st.builds(visits, st.integers(1, 10), st.integers(0, 2**32))


def expected(request: Request, choice: int) -> list[int]:
    tokens = paper_answer(request.prompt, request.sampling.max_tokens, choice)
    ends = [at for at, token in enumerate(tokens) if token in request.sampling.stop_token_ids]
    return tokens[: ends[0] + 1] if ends else tokens


def play(engine: Engine, made: list[Visit], max_steps: int = 1500) -> dict[str, Answer]:
    """Let all come and go, and look after every step whether all is as it must be."""
    answers: dict[str, Answer] = {}
    for step in range(max_steps):
        for visit in made:
            if visit.comes == step:
                engine.add(visit.request)
            if visit.goes is not None and visit.comes + visit.goes == step:
                engine.abort(visit.request.id)
                check_invariants(engine)
        if not engine.has_work and all(visit.comes <= step for visit in made):
            return answers
        collect(engine.step(), answers)
        check_invariants(engine)
    raise AssertionError(f"not at the end after {max_steps} steps: {engine.stats()}")


@given(
    st.builds(visits, st.integers(1, 10), st.integers(0, 2**32)),
    st.integers(7, 16),
    st.sampled_from((1, 2, 4)),
    st.integers(4, 9),
    st.integers(0, 30),
)
@settings(max_examples=1000, deadline=None)
def test_every_request_of_any_schedule_ends_with_its_own_text_and_no_block_is_lost(
    made: list[Visit], num_blocks: int, block_size: int, max_sequences: int, extra_budget: int
) -> None:
    num_blocks = max(num_blocks, 35 // block_size + 2)
    engine = paper_engine(
        num_blocks=num_blocks,
        block_size=block_size,
        max_sequences=max_sequences,
        max_batch_tokens=max_sequences + extra_budget,
    )
    answers = play(engine, made)
    for request, goes in ((visit.request, visit.goes) for visit in made):
        answer = answers[request.id]
        assert sorted(answer.reasons) == list(range(request.sampling.n)), "every choice is told its end"
        assert len(answer.cached_tokens) <= 1, "a start is told once"
        for choice, reason in answer.reasons.items():
            tokens, whole = answer.choices.get(choice, []), expected(request, choice)
            assert tokens == (whole[: len(tokens)] if reason == "abort" else whole)
            assert reason == "abort" if tokens != whole else goes is not None or reason != "abort"
    stats = engine.stats()
    assert stats.used_blocks == stats.num_running == stats.num_waiting == stats.replay_mismatches == 0
    assert max(engine.runner.num_rows, default=0) <= engine.scheduler.max_batch_tokens  # type: ignore[attr-defined]


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(-2, 2), st.sampled_from("abc"))
@settings(max_examples=50, deadline=None)
def test_rivals_without_end_do_not_keep_a_request_waiting_for_ever(
    seed: int, prompt: int, priority: int, tenant: str
) -> None:
    engine = paper_engine(num_blocks=24, block_size=4, max_sequences=4, max_batch_tokens=16)
    numbers = iter(range(10**6))

    def rival() -> Request:
        number = next(numbers)
        length, count = 1 + (seed + number * 7) % 40, 1 + (seed * 3 + number * 5) % 20
        rival_priority, rival_tenant = (seed + number) % 5 - 2, "abc"[(seed // 5 + number) % 3]
        name = f"rival {seed} {number}"
        return paper_ask(name, length, max_tokens=count, priority=rival_priority, tenant=rival_tenant)

    for _ in range(12):
        engine.add(rival())
    engine.add(paper_ask("victim", prompt, max_tokens=20, priority=priority, tenant=tenant))
    answers: dict[str, Answer] = {}
    for _ in range(3000):
        while engine.stats().num_waiting < 12:
            engine.add(rival())
        collect(engine.step(), answers)
        if "victim" in answers and answers["victim"].reasons:
            return
    raise AssertionError("overtaken for ever")


def test_the_oldest_keeps_its_blocks_when_they_run_out() -> None:
    engine = paper_engine(num_blocks=9, block_size=4, max_batch_tokens=64)
    oldest = paper_ask("oldest", 4, max_tokens=28)
    others = [paper_ask(f"r{index}", 4, max_tokens=20) for index in range(5)]
    for request in (oldest, *others):
        engine.add(request)
    answers: dict[str, Answer] = {}
    while "oldest" not in answers or not answers["oldest"].reasons:
        collect(engine.step(), answers)
        assert "oldest" not in [sequence.request.id for sequence in engine.scheduler.preempted]
    collect(run(engine), answers)
    assert engine.stats().preemptions > 0
    assert all(
        answer.tokens == expected(request, 0) for request in [oldest, *others] for answer in [answers[request.id]]
    )


def test_a_preempted_sequence_comes_back_before_anything_new() -> None:
    engine = paper_engine(num_blocks=9, block_size=4)
    for index in range(4):
        engine.add(paper_ask(f"r{index}", 4, max_tokens=20))
    while not engine.scheduler.preempted:
        engine.step()
    waiting = engine.scheduler.preempted[0]
    engine.add(paper_ask("new", 1, max_tokens=2, priority=-2))
    started: list[str] = []
    while waiting.status is Status.WAITING:
        assert "new" not in started
        started += [event.request_id for event in engine.step() if isinstance(event, Started)]


def test_a_long_prompt_does_not_hold_up_those_who_decode() -> None:
    engine = paper_engine(num_blocks=300, block_size=4, max_batch_tokens=16, max_sequences=8)
    engine.add(paper_ask("short", 4, max_tokens=60))
    answers: dict[str, Answer] = {}
    for _ in range(3):
        collect(engine.step(), answers)
    engine.add(paper_ask("long", 600, max_tokens=4))
    for _ in range(20):
        before = len(answers["short"].tokens)
        collect(engine.step(), answers)
        assert len(answers["short"].tokens) == before + 1
    assert isinstance(engine.runner, PaperRunner) and max(engine.runner.num_rows) == 16


def test_a_short_prompt_is_not_held_up_by_a_long_one() -> None:
    engine = paper_engine(num_blocks=300, block_size=4, max_batch_tokens=16, max_sequences=8)
    engine.add(paper_ask("long", 600, max_tokens=4))
    engine.step()
    engine.add(paper_ask("short", 8, max_tokens=4))
    answers: dict[str, Answer] = {}
    for _ in range(6):
        collect(engine.step(), answers)
    assert answers["short"].reasons == {0: "length"}


def test_prompts_that_are_read_side_by_side_share_the_budget_evenly() -> None:
    engine = paper_engine(num_blocks=300, block_size=4, max_batch_tokens=16, max_sequences=8)
    for name, length in (("long", 300), ("longer", 400), ("short", 2)):
        engine.add(paper_ask(name, length, max_tokens=4))
    engine.step()
    read = {sequence.request.id: sequence.num_cached for sequence in engine.scheduler.prefilling}
    assert read == {"long": 7, "longer": 7}  # the short one is done, and what it left is for the others


def test_an_aborted_sequence_frees_its_blocks_at_once() -> None:
    engine = paper_engine(num_blocks=40, block_size=4)
    for index in range(3):
        engine.add(paper_ask(f"r{index}", 20, max_tokens=30, n=2))
    for _ in range(4):
        engine.step()
    used = engine.stats().used_blocks
    for index, left in enumerate((2, 1, 0)):
        assert engine.abort(f"r{index}")
        check_invariants(engine)
        assert engine.stats().used_blocks <= used * left // 3
    assert not engine.abort("r0")


@pytest.mark.parametrize("steps", range(6))
def test_an_id_may_be_used_again_as_soon_as_its_request_is_gone(steps: int) -> None:
    engine = paper_engine(num_blocks=40, block_size=4, max_batch_tokens=8, max_sequences=8)
    engine.add(paper_ask("same", 20, max_tokens=9))
    for _ in range(steps):
        engine.step()
    engine.abort("same")
    request = replace(paper_ask("other", 11, max_tokens=9), id="same")
    engine.add(request)
    answers: dict[str, Answer] = {}
    ends = 0
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, ChoiceEnded):
                ends += 1
            else:
                collect([event], answers)
    assert ends == 1 and answers["same"].tokens == paper_answer(request.prompt, 9)
