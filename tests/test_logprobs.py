"""engine/logprobs.py: log-softmax of the model's own logits, of the token that was taken and of the likeliest."""

import mlx.core as mx
import numpy as np
import pytest

from engine.logprobs import score
from tests.engines import ask, record_logits, serve, serve_one, tiny_engine

LOGITS = np.random.default_rng(0).standard_normal((4, 100)).astype(np.float32) * 4


def log_softmax(logits: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def test_each_row_is_scored_with_as_many_alternatives_as_it_asks_for() -> None:
    tokens, wanted = [3, 99, 0, 50], log_softmax(LOGITS)
    records = score(mx.array(LOGITS), mx.array(tokens), 5).read([5, 0, 1, 3])
    for row, (record, count) in enumerate(zip(records, (5, 0, 1, 3), strict=True)):
        assert record.token == tokens[row]
        assert record.logprob == pytest.approx(wanted[row, tokens[row]], abs=1e-5)
        assert [token for token, _ in record.top] == np.argsort(-wanted[row])[:count].tolist()
        np.testing.assert_allclose([value for _, value in record.top], np.sort(wanted[row])[::-1][:count], atol=1e-5)


def test_equals_are_told_the_smaller_id_first() -> None:
    logits = mx.array([[0.0, 2.0, 1.0, 2.0]])
    assert [token for token, _ in score(logits, mx.array([0]), 4).read([4])[0].top] == [1, 3, 2, 0]


def test_a_vocabulary_smaller_than_the_wish_is_told_whole() -> None:
    assert len(score(mx.array(LOGITS[:, :3]), mx.array([0, 1, 2, 0]), 20).read([20] * 4)[0].top) == 3


def test_what_is_told_is_the_model_s_own_distribution_of_the_token_that_was_taken() -> None:
    how = {"temperature": 2.0, "seed": 4, "top_k": 9, "repetition_penalty": 2.0, "logit_bias": {5: 9.0}}
    engine = tiny_engine()
    log = record_logits(engine)
    answers = serve(engine, [ask("a", logprobs=3, **how), ask("b", logprobs=0, n=2, **how), ask("plain", **how)])
    assert answers["plain"].logprobs == {}
    for name, choice in (("a", 0), ("b", 0), ("b", 1)):
        for position, record in enumerate(answers[name].logprobs[choice]):
            wanted = log_softmax(np.array(log[name, choice, position]))
            assert record.token == answers[name].choices[choice][position]
            assert record.logprob == pytest.approx(wanted[record.token], abs=1e-5)
            assert len(record.top) == (3 if name == "a" else 0)


def test_a_prompt_s_scores_are_those_of_its_continuation() -> None:
    greedy = serve_one(tiny_engine(), ask("r", 10, max_tokens=9, logprobs=2))
    whole = (*ask("r", 10).prompt, *greedy.tokens)
    scored = serve_one(tiny_engine(), ask("s", whole, max_tokens=0, prompt_logprobs=2)).prompt_logprobs
    assert scored is not None and len(scored) == 18
    for told, again in zip(greedy.logprobs[0], scored[9:], strict=True):
        assert told.token == again.token
        assert told.logprob == pytest.approx(again.logprob, abs=2e-5)
        assert [token for token, _ in told.top] == [token for token, _ in again.top]
