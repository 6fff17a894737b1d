"""The real SmolLM2: its greedy text is mlx-lm's for the same weights, and the same whatever happens around it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine.engine import Engine, EngineOptions
from engine.kernels.choose import choose
from engine.refusal import Refusal
from engine.request import Request
from engine.weights import Model
from loaders.checkpoint import load_model
from loaders.mlx_lm_model import mlx_lm_model
from loaders.tokenizer import load_tokenizer
from tests.engines import Answer, LogitsLog, ask, record_logits, serve, serve_one

TEXTS = (
    "The capital of France is Paris",
    "Once upon a time there was",
    "def fibonacci(n): return",
    "Water boils at a temperature of",
    "My favourite book is about",
    "In 1969 the first man",
    "The opposite of hot is",
    "Dear Sir or Madam",
    "One, two, three, four",
    "Erlang is a programming language",
)
NUM_PROMPT = 4  # tokens of each: the machine's plainest kernels take a fifth of a second for one
COUNT = 8


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


def requests() -> Iterator[Request]:
    tokenizer = load_tokenizer("smollm2")
    return (ask(text, tokenizer.encode(text)[:NUM_PROMPT], max_tokens=COUNT) for text in TEXTS)


@cache
def answered() -> tuple[dict[str, Answer], LogitsLog]:
    """All prompts in one batch."""
    engine = engine_of()
    log = record_logits(engine)
    answers = serve(engine, requests())
    mx.eval(list(log.values()))
    return answers, log


def assert_same_logits(found: LogitsLog, name: str) -> None:
    _, wanted = answered()
    for (request, choice, position), logits in found.items():
        if request == name:
            one, other = np.array(logits), np.array(wanted[request, choice, position])
            assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


def test_greedy_answers_to_ten_prompts_are_mlx_lm_s() -> None:
    answers, log = answered()
    tokens = np.array([[*request.prompt, *answers[request.id].tokens] for request in requests()])
    theirs = np.array(mlx_lm_model(smollm2())(mx.array(tokens[:, :-1]))[:, NUM_PROMPT - 1 :])
    assert theirs.argmax(axis=-1).tolist() == tokens[:, NUM_PROMPT:].tolist()
    ours = np.array([[log[text, 0, at] for at in range(COUNT)] for text in TEXTS])
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_alone_and_in_chunks_of_three_is_as_in_the_batch() -> None:
    engine = engine_of(max_batch_tokens=3, max_sequences=2)
    log = record_logits(engine)
    request = next(requests())
    assert serve_one(engine, request).tokens == answered()[0][request.id].tokens
    assert_same_logits(log, request.id)


def test_resumed_and_from_the_prefix_cache_is_as_never_interrupted() -> None:
    request = next(requests())
    tokens = answered()[0][request.id].tokens
    engine = engine_of(block_size=2)
    log = record_logits(engine)
    assert serve_one(engine, replace(request, resumed=(tuple(tokens[:5]),))).tokens == tokens[5:]
    assert (engine.stats().replayed_tokens, engine.stats().replay_mismatches) == (5, 0)
    again = serve_one(engine, replace(request, resumed=(tuple(tokens[:6]),)))
    assert again.tokens == tokens[6:] and again.cached_tokens == [4]
    assert engine.stats().cached_tokens == 8
    assert_same_logits(log, request.id)
