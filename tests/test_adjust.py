"""engine/adjust.py: penalties, biases and bans as OpenAI and vLLM define them, for the rows that ask."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import adjust
from engine.adjust import Adjuster, Adjustment
from engine.request import Sampling

WIDTH = 12
LOGITS = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32) * 3


def wish(
    row: int = 0, prompt: Any = (), answer: Any = (), newest: int | None = None, ends: Any = (), **how: Any
) -> Adjustment:
    position = len(answer) + (newest is not None)
    return Adjustment(row, Sampling(**how), [*prompt, *answer], len(prompt), position, frozenset(ends), newest)


def adjusted(*wishes: Adjustment, tokens: Any = (0,)) -> Any:
    return np.array(Adjuster().adjust(mx.array(LOGITS), wishes, mx.array(tokens, mx.int32)))


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


def densely(logits: Any, wishes: list[Adjustment], tokens: Any) -> Any:
    """The definition over whole rows in float32, one operation after the other: what every bit is held to."""
    logits = logits.copy()
    for wish in wishes:
        how, row = wish.sampling, logits[wish.row]
        answer = wish.tokens[wish.num_prompt :][: wish.position]
        late = [] if wish.newest is None else [tokens[wish.newest]]
        times = np.bincount([*answer, *late], minlength=WIDTH).astype(np.float32)
        occurs = np.isin(np.arange(WIDTH), [*wish.tokens[: wish.num_prompt], *answer, *late])
        repetition, presence, frequency = map(
            np.float32, (how.repetition_penalty, how.presence_penalty, how.frequency_penalty)
        )
        row = np.where(occurs, np.where(row > 0, row / repetition, row * repetition), row)
        row = row - frequency * times - presence * (times > 0).astype(np.float32)
        if how.allowed_token_ids is not None:
            row = np.where(np.isin(np.arange(WIDTH), how.allowed_token_ids), row, -np.inf)
        for token, value in how.logit_bias.items():
            row[token] += np.float32(value)
        logits[wish.row] = row
    return logits


def some_or(nothing: float, least: float, most: float) -> st.SearchStrategy[float]:
    return st.just(nothing) | st.floats(least, most)


SAMPLINGS = st.builds(
    Sampling,
    repetition_penalty=some_or(1.0, 0.1, 5),
    presence_penalty=some_or(0.0, -3, 3),
    frequency_penalty=some_or(0.0, -3, 3),
    allowed_token_ids=st.none() | TOKENS.map(tuple),
    logit_bias=st.dictionaries(st.integers(0, WIDTH - 1), st.floats(-100, 100), max_size=4),
)


@given(st.lists(st.tuples(SAMPLINGS, TOKENS, TOKENS), min_size=1, max_size=3), st.integers(1, 40), st.data())
@settings(max_examples=150, deadline=None)
def test_few_cells_come_to_the_same_bits_as_whole_rows_step_after_step(
    asked: list[tuple[Sampling, list[int], list[int]]], most: int, data: st.DataObject
) -> None:
    known = [(how, len(prompt), [*prompt, *answer]) for how, prompt, answer in asked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adjust, "MAX_CELLS", most)
        adjuster = Adjuster()
        for _ in range(3):
            drawn = data.draw(st.lists(st.integers(0, WIDTH - 1), min_size=3, max_size=3))
            late = data.draw(st.lists(st.booleans(), min_size=3, max_size=3))
            wishes = [
                Adjustment(
                    row, how, tokens, prompt, len(tokens) - prompt + is_late, frozenset(), row if is_late else None
                )
                for row, ((how, prompt, tokens), is_late) in enumerate(zip(known, late, strict=False))
            ]
            found = adjuster.adjust(mx.array(LOGITS), wishes, mx.array(drawn, mx.int32))
            np.testing.assert_array_equal(np.array(found), densely(LOGITS, wishes, drawn))
            for (_, _, tokens), token in zip(known, drawn, strict=False):
                tokens.append(token)


@given(SAMPLINGS, TOKENS, TOKENS, st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_the_rows_of_a_replay_come_to_the_same_bits(
    how: Sampling, prompt: list[int], answer: list[int], most: int
) -> None:
    tokens = [*prompt, *answer]
    wishes = [
        Adjustment(row, how, tokens, len(prompt), position, frozenset(), None)
        for row, position in enumerate(range(len(answer) + 1)[-3:])
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adjust, "MAX_CELLS", most)
        np.testing.assert_array_equal(adjusted(*wishes), densely(LOGITS, wishes, ()))


class Watched(list[int]):
    num_read = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.num_read += len(found)
        return found


def test_a_sequence_is_read_once_whatever_the_number_of_its_rows_and_steps() -> None:
    tokens, adjuster = Watched([1, 2, 3] * 100), Adjuster()
    for _ in range(10):
        wishes = [
            Adjustment(row, Sampling(repetition_penalty=2.0), tokens, 200, 98 + row, frozenset(), None)
            for row in range(3)
        ]
        adjuster.adjust(mx.array(LOGITS), wishes, mx.array([0]))
        tokens.append(4)
    assert tokens.num_read == 309


def test_who_does_not_ask_again_is_forgotten() -> None:
    adjuster = Adjuster()
    adjuster.adjust(mx.array(LOGITS), [wish(0, (1,), (2,), repetition_penalty=2.0)], mx.array([0]))
    adjuster.adjust(mx.array(LOGITS), [], mx.array([0]))
    assert not adjuster._askers


def test_penalties_of_many_rows_with_long_prompts_take_less_memory_than_the_logits_do() -> None:
    width, count = 50_000, 256
    logits, tokens = mx.zeros((count, width)), list(range(width))
    how = Sampling(repetition_penalty=2.0, frequency_penalty=1.0)
    wishes = [Adjustment(row, how, tokens, width - count, row, frozenset(), None) for row in range(count)]
    mx.eval(logits)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(Adjuster().adjust(logits, wishes, mx.array([0])))
    result = logits.nbytes
    assert mx.get_peak_memory() - before - result < logits.nbytes
