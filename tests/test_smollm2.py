"""The real SmolLM2: its greedy text is mlx-lm's for the same weights, and the same whatever happens around it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine.adapter import Adapter
from engine.cache import block_bytes
from engine.engine import Engine
from engine.kernels.choose import choose
from engine.options import EngineOptions
from engine.refusal import Refusal
from engine.request import Request
from engine.weights import Model
from loaders.checkpoint import load_model
from loaders.made_up import made_up_adapter
from loaders.mlx_lm_model import mlx_lm_model
from loaders.tokenizer import Tokenizer, load_tokenizer
from tests.engines import Answer, LogitsLog, ask, collect, record_logits, run, serve, serve_one
from tests.smollm2_answers import NUM_TOKENS, TEXTS
from tests.smollm2_answers import answers as mlx_lm_s_answers


@cache
def smollm2() -> Model:
    try:
        return load_model("smollm2")
    except Refusal as refusal:
        pytest.skip(refusal.message)


def engine_of(**options: Any) -> Engine:
    model = smollm2()
    made = EngineOptions(**{"cache_bytes": 1 << 26, "cache_dtype": "float32", **options})
    return Engine(model, choose(model.config, model.weights, made.block_size), made)


@cache
def tokens_of(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text))


@cache
def tokenizer() -> Tokenizer:
    return load_tokenizer("smollm2")


def requests() -> Iterator[Request]:
    return (ask(text, tokens_of(text), max_tokens=NUM_TOKENS) for text in TEXTS)


@cache
def answered() -> tuple[dict[str, Answer], LogitsLog]:
    """All prompts in one batch."""
    engine = engine_of()
    log = record_logits(engine)
    answers = serve(engine, requests())
    mx.eval(list(log.values()))
    return answers, log


def test_greedy_answers_to_ten_prompts_are_mlx_lm_s() -> None:
    assert {name: answer.tokens for name, answer in answered()[0].items()} == mlx_lm_s_answers()


def test_logits_are_mlx_lm_s() -> None:
    answers, log = answered()
    request = next(requests())
    tokens, count = [*request.prompt, *answers[request.id].tokens], 6  # mlx-lm takes a fifth of a second for a token
    read = mx.array([tokens[: len(request.prompt) + count - 1]])
    theirs = np.array(mlx_lm_model(smollm2())(read))[0, len(request.prompt) - 1 :]
    ours = np.array([log[request.id, 0, at] for at in range(count)])
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


HOW: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.9, "top_p": 0.95, "seed": 7, "logprobs": 2},
}
COUNT = 12
Told = tuple[dict[str, Answer], LogitsLog]


def subject(how: str, **more: Any) -> Request:
    """A request of which much is made: a prompt of two dozen tokens."""
    return ask(how, tokens_of(". ".join(TEXTS[:4])), **{"max_tokens": COUNT, **HOW[how], **more})


def subjects() -> list[Request]:
    return [subject(how) for how in HOW]


@cache
def alone(how: str, adapter: str | None = None) -> Told:
    """A subject that nothing disturbs, its prompt read at once."""
    return told(engine_of(), [replace(subject(how), adapter=adapter)])


@cache
def adapter_of(rank: int) -> Adapter:
    return made_up_adapter(smollm2().config, rank, seed=rank, strength=0.05)


def told(engine: Engine, requests: list[Request], aborted: list[Request] | None = None) -> Told:
    """What an engine answers, one of those to be aborted leaving at each step."""
    if any(request.adapter for request in requests):
        engine.attach("x", adapter_of(rank=8))
        engine.attach("y", adapter_of(rank=16))
    log, answers = record_logits(engine), dict[str, Answer]()
    for request in [*(aborted or []), *requests]:
        engine.add(request)
    while engine.has_work:
        collect(engine.step(), answers)
        if aborted:
            engine.abort(aborted.pop().id)
    mx.eval(list(log.values()))
    return answers, log


def strangers(count: int, max_tokens: int = 8) -> list[Request]:
    tokens = subject("greedy").prompt
    return [
        ask(f"stranger {at}", tokens[at % 9 : at % 9 + 1 + at % 4], max_tokens=1 + (at * 5) % max_tokens)
        for at in range(count)
    ]


def assert_as_alone(found: Told) -> None:
    for how in HOW:
        answer, wanted = found[0][how], alone(how)[0][how]
        assert (answer.tokens, answer.reasons) == (wanted.tokens, wanted.reasons)
        for at in range(COUNT):
            assert_same_logits(found[1][how, 0, at], alone(how)[1][how, 0, at])


def assert_same_logits(found: mx.array, wanted: mx.array) -> None:
    one, other = np.array(found), np.array(wanted)
    assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


def test_alone_is_as_among_32_strangers() -> None:
    assert_as_alone(told(engine_of(max_sequences=34), [*strangers(32), *subjects()]))


def test_a_prompt_in_chunks_of_seven_is_as_in_one() -> None:
    assert_as_alone(told(engine_of(max_batch_tokens=7, max_sequences=2), subjects()))


def test_a_prompt_found_in_the_prefix_cache_is_as_one_read() -> None:
    engine = engine_of()
    serve_one(engine, replace(subject("greedy", max_tokens=1), id="before"))
    found = told(engine, subjects())
    assert all(found[0][how].cached_tokens == [16] for how in HOW)
    assert_as_alone(found)


def test_aborted_neighbours_disturb_nobody() -> None:
    assert_as_alone(told(engine_of(max_sequences=10), subjects(), aborted=strangers(10, max_tokens=30)))


def test_preempted_is_as_not_preempted() -> None:
    engine = engine_of(block_size=4, cache_bytes=22 * block_bytes(smollm2().config, 4, "float32"))
    found = told(engine, [*strangers(3, max_tokens=16), *subjects()])
    assert engine.stats().preemptions > 0 and engine.stats().replay_mismatches == 0
    assert_as_alone(found)


def test_resumed_at_every_position_is_as_never_interrupted() -> None:
    wanted, engine = {how: alone(how)[0][how] for how in HOW}, engine_of(max_sequences=2 * COUNT, block_size=64)
    for how in HOW:
        for cut in range(COUNT):
            tokens = tuple(wanted[how].tokens[:cut])
            engine.add(replace(subject(how), id=f"{how} {cut}", resumed=(tokens,)))
    answers = collect(run(engine), {})
    for how in HOW:
        for cut in range(COUNT):
            assert answers[f"{how} {cut}"].tokens == wanted[how].tokens[cut:]
            rest = wanted[how].logprobs.get(0, [])[cut:]
            assert [one.token for one in answers[f"{how} {cut}"].logprobs.get(0, [])] == [one.token for one in rest]
    assert (engine.stats().replayed_tokens, engine.stats().replay_mismatches) == (2 * sum(range(COUNT)), 0)


def test_an_adapter_beside_another_is_as_alone() -> None:
    requests = [replace(subject("greedy"), id=f"with {name}", adapter=name) for name in ("x", "y", None)]
    answers, log = told(engine_of(), requests)
    assert len({tuple(answer.tokens) for answer in answers.values()}) == 3
    for request in requests:
        wanted, logits = alone("greedy", request.adapter)
        assert answers[request.id].tokens == wanted["greedy"].tokens
        for at in range(COUNT):
            assert_same_logits(log[request.id, 0, at], logits["greedy", 0, at])
