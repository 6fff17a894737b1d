"""engine/adjust.py: penalties, biases and bans as OpenAI and vLLM define them, for the rows that ask."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.adjust import Adjustment, adjust
from engine.request import Sampling

WIDTH = 12
LOGITS = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32) * 3


def wish(
    row: int = 0, prompt: Any = (), answer: Any = (), newest: int | None = None, ends: Any = (), **how: Any
) -> Adjustment:
    position = len(answer) + (newest is not None)
    return Adjustment(row, Sampling(**how), [*prompt, *answer], len(prompt), position, frozenset(ends), newest)


def adjusted(*wishes: Adjustment, tokens: Any = (0,)) -> Any:
    return np.array(adjust(mx.array(LOGITS), wishes, mx.array(tokens, mx.int32)))


def by_hand(row: Any, prompt: Any, answer: Any, repetition: float, presence: float, frequency: float) -> Any:
    row = np.array(row, np.float64)
    for token in {*prompt, *answer}:
        row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
    for token in answer:
        row[token] -= frequency
    for token in set(answer):
        row[token] -= presence
    return row


TOKENS = st.lists(st.integers(0, WIDTH - 1), max_size=20)


@given(TOKENS, TOKENS, st.floats(0.1, 5), st.floats(-3, 3), st.floats(-3, 3), st.booleans())
@settings(max_examples=100, deadline=None)
def test_penalties_are_those_of_the_definition_even_when_the_last_token_is_still_on_its_way(
    prompt: list[int], answer: list[int], repetition: float, presence: float, frequency: float, is_late: bool
) -> None:
    how = {"repetition_penalty": repetition, "presence_penalty": presence, "frequency_penalty": frequency}
    wanted = by_hand(LOGITS[1], prompt, answer, repetition, presence, frequency)
    if is_late and answer:
        found = adjusted(wish(1, prompt, answer[:-1], newest=2, **how), tokens=(9, 9, answer[-1]))
    else:
        found = adjusted(wish(1, prompt, answer, **how))
    np.testing.assert_allclose(found[1], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[[0, 2]], LOGITS[[0, 2]])


def test_a_replayed_position_is_penalised_for_what_stood_before_it() -> None:
    whole = Adjustment(0, Sampling(frequency_penalty=1.0), [5, 1, 1, 2], 1, 1, frozenset(), None)
    np.testing.assert_allclose(adjusted(whole)[0], by_hand(LOGITS[0], [5], [1], 1, 0, 1), rtol=1e-5)


def test_biases_are_added_and_bans_win() -> None:
    found = adjusted(wish(2, logit_bias={3: 2.5, 4: -100.0, 5: 100.0}, banned_token_ids=(5, 6)))
    wanted = LOGITS[2].copy()
    wanted[[3, 4]] += 2.5, -100
    wanted[[5, 6]] = -np.inf
    np.testing.assert_allclose(found[2], wanted, rtol=1e-6)
    np.testing.assert_array_equal(found[:2], LOGITS[:2])


def test_only_allowed_tokens_remain() -> None:
    found = adjusted(wish(1, allowed_token_ids=(2, 7, 7), logit_bias={2: 1.0}, banned_token_ids=(0,)))
    assert np.flatnonzero(np.isfinite(found[1])).tolist() == [2, 7]
    np.testing.assert_allclose(found[1, [2, 7]], LOGITS[1, [2, 7]] + [1, 0], rtol=1e-6)
    assert np.isfinite(found[[0, 2]]).all()


@pytest.mark.parametrize("num_known", [0, 2, 3, 4])
def test_endings_are_banned_until_the_least_length(num_known: int) -> None:
    found = adjusted(wish(0, (1,), (1,) * num_known, ends=(4, 5), min_tokens=3))
    assert np.isinf(found[0, [4, 5]]).all() == (num_known < 3)


def test_every_row_has_its_own_wishes() -> None:
    wishes = [
        wish(0, (1,), (2, 2), presence_penalty=1.0),
        wish(1, logit_bias={0: 1.0}),
        wish(2, (3,), (), repetition_penalty=2.0, allowed_token_ids=(3, 4)),
    ]
    together = adjusted(*wishes)
    for row, one in enumerate(wishes):
        np.testing.assert_array_equal(together[row], adjusted(one)[row])
