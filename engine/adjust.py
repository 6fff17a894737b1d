"""Adjusting logits: penalties, biases, bans, for the rows that ask. Lazy, so the last token may still be on its way.

A row is as long as the vocabulary, and penalties and biases are about few of its tokens: only their cells of the
flattened logits are read and written. What the rows of a sequence have in common becomes arrays once, not in each step.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.request import Sampling

NEVER = -float("inf")
MAX_CELLS = 1 << 19  # penalised at once: bounds the memory that it takes beside the logits

Tokens = NDArray[np.uint32]
Amounts = NDArray[np.float32]


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


class Asker:
    """A sequence that asks: what its rows have in common, as arrays, each made when it is first needed."""

    def __init__(self, wish: Adjustment, width: int) -> None:
        self.sampling, self.end_ids, self.width = wish.sampling, wish.end_ids, width
        self.tokens, self.num_prompt = wish.tokens, wish.num_prompt
        self._answer = as_tokens(())

    @cached_property
    def in_prompt(self) -> Tokens:
        """Each token of the prompt, if that counts for anything."""
        counts = self.sampling.repetition_penalty != 1
        return np.unique(as_tokens(self.tokens[: self.num_prompt] if counts else ()))

    def occurrences(self, position: int) -> tuple[Tokens, Amounts]:
        """Each token that stands before a position of the answer, and how often it is in the answer."""
        in_answer, times = np.unique(self.answer(position), return_counts=True)
        first, after = (np.searchsorted(self.in_prompt, in_answer, side) for side in ("left", "right"))
        is_new, counts = first == after, np.zeros(len(self.in_prompt), np.float32)
        counts[first[~is_new]] = times[~is_new]
        seen = np.concatenate([self.in_prompt, in_answer[is_new]])
        return seen, np.concatenate([counts, times[is_new]], dtype=np.float32)

    def answer(self, position: int) -> Tokens:
        """What the host knows of the answer before a position."""
        new = self.tokens[self.num_prompt + len(self._answer) :]
        if new:
            self._answer = np.concatenate([self._answer, as_tokens(new)])
        return self._answer[:position]

    @cached_property
    def is_allowed(self) -> mx.array:
        mask = np.zeros(self.width, np.bool_)
        mask[as_tokens(self.sampling.allowed_token_ids or ())] = True
        return mx.array(mask)

    @cached_property
    def biases(self) -> tuple[Tokens, Amounts]:
        return self.biases_with(self.sampling.banned_token_ids)

    @cached_property
    def early_biases(self) -> tuple[Tokens, Amounts]:
        """Those until it has its least length."""
        return self.biases_with((*self.sampling.banned_token_ids, *self.end_ids))

    def biases_with(self, banned: Many[int]) -> tuple[Tokens, Amounts]:
        added = {**self.sampling.logit_bias, **dict.fromkeys(banned, NEVER)}
        return as_tokens(tuple(added)), np.array(tuple(added.values()), np.float32)


Asked = list[tuple[Adjustment, Asker]]
Cells = tuple[mx.array, mx.array, mx.array]
"""Places in the flattened logits, each one's line in a portion, how often its token is in the line's answer."""


class Adjuster:
    """Knows who asked in the step before. Owned by the Runner."""

    def __init__(self) -> None:
        self._askers: dict[int, Asker] = {}  # by the id of their list of tokens; they hold it, so the id stays theirs

    def adjust(self, logits: mx.array, wishes: Many[Adjustment], tokens: mx.array) -> mx.array:
        """The logits, (R, V), with each row's wishes; `tokens` are the batch's, for those not known yet."""
        one_each = {id(wish.tokens): wish for wish in wishes}
        self._askers = {key: self._askers.get(key) or Asker(wish, logits.shape[1]) for key, wish in one_each.items()}
        if not wishes:
            return logits
        asked = [(wish, self._askers[id(wish.tokens)]) for wish in wishes]
        return bias(restrict(penalise(logits, asked, tokens), asked), asked)


def penalise(logits: mx.array, asked: Asked, tokens: mx.array) -> mx.array:
    """Repetition over prompt and answer, presence and frequency over the answer, as OpenAI and vLLM define them."""
    flat = changed = logits.reshape(-1)
    for portion in portions([(wish, asker) for wish, asker in asked if wish.sampling.has_penalties]):
        if changed is not flat:
            mx.eval(changed)  # so that what the portion before needed is free again
        known = occurring(portion, logits.shape[1])
        cells, lines, counts = with_late(known, portion, tokens, logits.shape)
        repetition, presence, frequency = (
            picked(mx.array([getattr(wish.sampling, name) for wish, _ in portion], mx.float32), lines)
            for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
        )
        mine = picked(flat, cells)
        mine = mx.where(mine > 0, mine / repetition, mine * repetition)
        mine = mine - frequency * counts - presence * (counts > 0).astype(mx.float32)
        changed = mx.put_along_axis(changed, cells, mine, axis=0)
    return changed.reshape(logits.shape)


def portions(asked: Asked) -> Iterator[Asked]:
    """As many rows at a time as have MAX_CELLS, or one."""
    portion, num_cells = Asked(), 0
    for wish, asker in asked:
        num_more = len(asker.in_prompt) + wish.position
        if portion and num_cells + num_more > MAX_CELLS:
            yield portion
            portion, num_cells = [], 0
        portion.append((wish, asker))
        num_cells += num_more
    if portion:
        yield portion


def occurring(portion: Asked, width: int) -> Cells:
    """What occurs in each line, as far as the host knows."""
    found = [asker.occurrences(wish.position) for wish, asker in portion]
    lines = np.repeat(np.arange(len(portion), dtype=np.uint32), [len(seen) for seen, _ in found])
    cells = np.concatenate([seen + start_of(wish, width) for (seen, _), (wish, _) in zip(found, portion, strict=True)])
    return mx.array(cells), mx.array(lines), mx.array(np.concatenate([counts for _, counts in found]))


def with_late(known: Cells, portion: Asked, tokens: mx.array, shape: tuple[int, ...]) -> Cells:
    """And the tokens still on their way. One that is known already stands here twice then, with the same count."""
    late = [(line, wish) for line, (wish, _) in enumerate(portion) if wish.newest is not None]
    if not late:
        return known
    cells, lines, counts = known
    late_lines = mx.array([line for line, _ in late], mx.uint32)
    starts = mx.array([wish.row * shape[1] for _, wish in late], mx.uint32)
    newest = starts + tokens[mx.array([wish.newest for _, wish in late], mx.uint32)].astype(mx.uint32)
    no_cell, no_line = shape[0] * shape[1], len(portion)
    newest_of = mx.put_along_axis(mx.full(len(portion), no_cell, mx.uint32), late_lines, newest, axis=0)
    is_again = cells == picked(newest_of, lines)
    counts = counts + is_again.astype(mx.float32)
    again = mx.put_along_axis(mx.zeros(no_line + 1), mx.where(is_again, lines, no_line), counts, axis=0)
    late_counts = mx.maximum(picked(again, late_lines), 1.0)
    return mx.concatenate([cells, newest]), mx.concatenate([lines, late_lines]), mx.concatenate([counts, late_counts])


def picked(values: mx.array, places: mx.array) -> mx.array:
    """values[places], in a tenth of the time."""
    return mx.take_along_axis(values, places, axis=0)


def start_of(wish: Adjustment, width: int) -> np.uint32:
    return np.uint32(wish.row * width)


def restrict(logits: mx.array, asked: Asked) -> mx.array:
    """Only allowed tokens remain. The rows of a sequence share a mask."""
    masks, mask_of = [mx.ones(logits.shape[1], mx.bool_)], dict[Asker, int]()
    mask_of_row = np.zeros(logits.shape[0], np.int32)
    for wish, asker in asked:
        if wish.sampling.allowed_token_ids is not None:
            if asker not in mask_of:
                mask_of[asker] = len(masks)
                masks.append(asker.is_allowed)
            mask_of_row[wish.row] = mask_of[asker]
    return mx.where(mx.stack(masks)[mx.array(mask_of_row)], logits, NEVER) if mask_of else logits


def bias(logits: mx.array, asked: Asked) -> mx.array:
    """Biases are added, and bans win."""
    width, cells, amounts = logits.shape[1], list[Tokens](), list[Amounts]()
    for wish, asker in asked:
        biased, added = asker.early_biases if wish.position < wish.sampling.min_tokens else asker.biases
        cells.append(biased + start_of(wish, width))
        amounts.append(added)
    all_cells = np.concatenate(cells)
    if not all_cells.size:
        return logits
    changed = logits.reshape(-1).at[mx.array(all_cells)].add(mx.array(np.concatenate(amounts)))
    return changed.reshape(logits.shape)


def as_tokens(tokens: Many[int]) -> Tokens:
    return np.asarray(tokens, np.uint32)
