"""Adjusting logits: penalties, biases, bans, for the rows that ask. Lazy, so the last token may still be on its way."""

from collections.abc import Sequence as Many
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from engine.request import Sampling

NEVER = -float("inf")


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What one output row asks for."""

    row: int  # of the logits
    sampling: Sampling
    tokens: Many[int]  # prompt and answer, as far as the host knows them
    num_prompt: int
    position: int  # in the answer, of the token to choose
    end_ids: frozenset[int]  # tokens that end the sequence
    newest: int | None  # the batch row of the last token, where the host does not know it yet

    @property
    def prompt(self) -> Many[int]:
        return self.tokens[: self.num_prompt]

    @property
    def answer(self) -> Many[int]:
        return self.tokens[self.num_prompt : self.num_prompt + self.position]


def adjust(logits: mx.array, adjustments: Many[Adjustment], tokens: mx.array) -> mx.array:
    """The logits, (R, V), with each row's wishes; `tokens` are the batch's, for those not known yet."""
    penalised = [wish for wish in adjustments if wish.sampling.has_penalties]
    if penalised:
        logits = penalise(logits, penalised, tokens)
    restricted = [wish for wish in adjustments if wish.sampling.allowed_token_ids is not None]
    if restricted:
        rows = mx.array([wish.row for wish in restricted], mx.int32)
        kept = np.full((len(restricted), logits.shape[1]), NEVER, np.float32)
        for line, wish in zip(kept, restricted, strict=True):
            line[np.asarray(wish.sampling.allowed_token_ids, np.int32)] = 0
        logits = logits.at[rows].add(mx.array(kept))
    return scatter_add(logits, [entry for wish in adjustments for entry in biases(wish)])


def biases(wish: Adjustment) -> list[tuple[int, int, float]]:
    """(row, token, what to add)."""
    sampling = wish.sampling
    banned = set(sampling.banned_token_ids)
    if wish.position < sampling.min_tokens:
        banned |= wish.end_ids
    added = [(wish.row, token, value) for token, value in sampling.logit_bias.items() if token not in banned]
    return added + [(wish.row, token, NEVER) for token in banned]


def penalise(logits: mx.array, wishes: Many[Adjustment], tokens: mx.array) -> mx.array:
    """Repetition over prompt and answer, presence and frequency over the answer, as OpenAI and vLLM define them."""
    rows = mx.array([wish.row for wish in wishes], mx.int32)
    in_prompt = occurrences([wish.prompt for wish in wishes], logits.shape[1])
    in_answer = occurrences([wish.answer for wish in wishes], logits.shape[1])
    late = [(line, wish.newest) for line, wish in enumerate(wishes) if wish.newest is not None]
    if late:
        lines, newest = (mx.array(column, mx.int32) for column in zip(*late, strict=True))
        in_answer = in_answer.at[lines, tokens[newest]].add(1.0)
    repetition, presence, frequency = (
        mx.array([[getattr(wish.sampling, name)] for wish in wishes], mx.float32)
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
    )
    mine = logits[rows]
    repeated = mx.where(mine > 0, mine / repetition, mine * repetition)
    mine = mx.where((in_answer + in_prompt) > 0, repeated, mine)
    mine = mine - frequency * in_answer - presence * (in_answer > 0).astype(mx.float32)
    changed = mx.array(logits)
    changed[rows] = mine
    return changed


def occurrences(lists: Many[Many[int]], width: int) -> mx.array:
    """How often each token is in each list, (lists, width); only what occurs is handed over."""
    lines = np.repeat(np.arange(len(lists), dtype=np.int32), [len(tokens) for tokens in lists])
    tokens = np.concatenate([np.asarray(tokens, np.int32) for tokens in lists])
    counts = mx.zeros((len(lists), width))
    return counts.at[mx.array(lines), mx.array(tokens)].add(1.0) if tokens.size else counts


def scatter_add(array: mx.array, entries: Many[tuple[int, int, float]]) -> mx.array:
    if not entries:
        return array
    table = np.asarray(entries, np.float64)
    lines, columns = table[:, 0].astype(np.int32), table[:, 1].astype(np.int32)
    return array.at[mx.array(lines), mx.array(columns)].add(mx.array(table[:, 2].astype(np.float32)))
