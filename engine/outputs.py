"""Outputs: which rows of a step have a result, and what for.

In this order: a draw for each decode row; a draw for each choice of a sequence whose tokens are now all in; a replay
for each token that a sequence brought along, drawn again and compared; a score for each token of a prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.adjust import Adjustment
from engine.rows import Rows, knobs_of
from engine.sampling import uniforms
from engine.scheduler import PlannedChunk
from engine.sequence import Sequence

Kind = TypeVar("Kind", bound=np.generic)
Fork = Callable[[Sequence, int], Sequence]
Settings = tuple[NDArray[np.float32], bool, bool]
"""Of draws: what each wants, (draws, 5), whether all are greedy, and whether some have a top_k or top_p."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A draw outside the decode rows: for `sequence`, the token at `position` of its answer, from batch row `row`."""

    sequence: Sequence
    row: int
    position: int


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """Batch row `row` says how likely the token at `position` of the sequence's prompt was."""

    sequence: Sequence
    row: int
    position: int

    @property
    def token(self) -> int:
        return self.sequence.tokens[self.position]


@dataclass(frozen=True, slots=True)
class Outputs:
    decoding: tuple[Sequence, ...]  # the decode rows' sequences, as they stood
    starting: tuple[Drawn, ...]
    replayed: tuple[Drawn, ...]
    prompts: tuple[ScoredPrompt, ...]
    may_score: bool  # whether some draw may want its logprob

    @property
    def num_draws(self) -> int:
        return len(self.decoding) + len(self.starting) + len(self.replayed)

    @property
    def num_rows(self) -> int:
        return self.num_draws + len(self.prompts)

    @property
    def rows(self) -> NDArray[np.int32]:
        """The batch rows whose logits are wanted."""
        others = [output.row for group in (self.starting, self.replayed, self.prompts) for output in group]
        return joined(np.arange(len(self.decoding), dtype=np.int32), others)

    @property
    def sampled(self) -> list[Sequence]:
        """Whose tokens the draws are, replays left out."""
        return [*self.decoding, *(drawn.sequence for drawn in self.starting)]

    def scored(self) -> list[tuple[int, int]]:
        """(draw, number of alternatives) for each drawn token whose logprob is wanted."""
        wanted = ((draw, sequence.request.sampling.logprobs) for draw, sequence in enumerate(self.sampled))
        return [(draw, count) for draw, count in wanted if count is not None]

    def knobs(self, rows: Rows) -> Settings:
        count, others = len(self.decoding), (*self.starting, *self.replayed)
        knobs = np.zeros((count + len(others), 5), np.float32)
        knobs[:count] = rows.knobs[:count]
        for line, drawn in enumerate(others, start=count):
            knobs[line, :4] = knobs_of(drawn.sequence)
        temperature, top_k, top_p = knobs[:, 0], knobs[:, 1], knobs[:, 2]
        is_greedy = not temperature.any()
        if not is_greedy:
            knobs[:, 4] = uniforms(
                joined(rows.seeds[:count], [drawn.sequence.seed for drawn in others]),
                joined(rows.generated[:count].astype(np.uint64), [drawn.position for drawn in others]),
                joined(rows.choices[:count], [drawn.sequence.choice for drawn in others]),
            )
        return knobs, is_greedy, bool(top_k.any() or (top_p < 1).any())

    def adjustments(self, rows: Rows) -> list[Adjustment]:
        """The wishes of draws that change their logits."""
        wishes = []
        if rows.num_special:
            for row, sequence in enumerate(self.decoding):
                if sequence.request.sampling.changes_logits:
                    position = int(rows.generated[row])
                    is_late = sequence.num_generated < position
                    wishes.append(adjustment(sequence, row, position, row if is_late else None))
        for draw, drawn in enumerate((*self.starting, *self.replayed), start=len(self.decoding)):
            if drawn.sequence.request.sampling.changes_logits:
                wishes.append(adjustment(drawn.sequence, draw, drawn.position, None))
        return wishes


def joined(column: NDArray[Kind], rest: list[int]) -> NDArray[Kind]:
    """A column of the decode rows, and what comes after them: in most steps nothing."""
    return np.concatenate([column, np.array(rest, column.dtype)]) if rest else column


def adjustment(sequence: Sequence, draw: int, position: int, newest: int | None) -> Adjustment:
    sampling, num_prompt = sequence.request.sampling, sequence.num_prompt
    return Adjustment(draw, sampling, sequence.tokens, num_prompt, position, sequence.end_ids, newest)


def outputs_of(rows: Rows, chunks: tuple[PlannedChunk, ...], fork: Fork) -> Outputs:
    """What this step's rows are for; choices that share a prompt part here."""
    starting, replayed, prompts = list[Drawn](), list[Drawn](), list[ScoredPrompt]()
    first = len(rows)
    for chunk in chunks:
        sequence, last = chunk.sequence, first + chunk.length - 1
        if chunk.is_last and sequence.request.sampling.max_tokens:
            choices = [sequence, *(fork(sequence, choice) for choice in sequence.choices[1:])]
            sequence.is_forking = False
            starting += [Drawn(choice, last, choice.num_generated) for choice in choices]
        replayed += replays(chunk, first)
        if sequence.wants_prompt_scores:
            prompts += scored_prompt(chunk, first)
        first += chunk.length
    may_score = bool(rows.num_special or any(drawn.sequence.is_special for drawn in starting))
    return Outputs(tuple(rows.sequences), tuple(starting), tuple(replayed), tuple(prompts), may_score)


def replays(chunk: PlannedChunk, first: int) -> list[Drawn]:
    """Rows of the chunk after which the sequence has a token already that was drawn."""
    sequence = chunk.sequence
    start = max(chunk.start, sequence.num_prompt - 1)
    stop = min(chunk.start + chunk.length, len(sequence.tokens) - 1)
    return [Drawn(sequence, first + at - chunk.start, at + 1 - sequence.num_prompt) for at in range(start, stop)]


def scored_prompt(chunk: PlannedChunk, first: int) -> list[ScoredPrompt]:
    """Rows of the chunk after which the prompt goes on."""
    sequence = chunk.sequence
    stop = min(chunk.start + chunk.length, sequence.num_prompt - 1)
    return [ScoredPrompt(sequence, first + at - chunk.start, at + 1) for at in range(chunk.start, stop)]
