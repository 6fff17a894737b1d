"""Rows: what a decode step needs of its sequences, as columns, so that a step does not loop over sequences.

Row i belongs to sequences[i]; rows stay packed, so the last one moves when another leaves. The columns are derived
from the sequences when they join, and advance together, one position a step. Owned by the Scheduler.
"""

import numpy as np
from numpy.typing import NDArray

from engine.sequence import Sequence


class Rows:
    """Columns of `capacity` rows, of which the first `len(rows)` are in use."""

    def __init__(self, capacity: int, max_blocks: int) -> None:
        self.sequences: list[Sequence] = []
        self.tables = np.zeros((capacity, max_blocks), np.int32)
        self.positions = np.zeros(capacity, np.int32)  # of the token that goes in next
        self.generated = np.zeros(capacity, np.int32)  # position, in the answer, of the token that comes out
        self.last_positions = np.zeros(capacity, np.int32)  # `generated` of the last token it may have
        self.sources = np.zeros(capacity, np.int32)  # which output of the step before is the token that goes in
        self.adapters = np.full(capacity, -1, np.int32)
        self.seeds = np.zeros(capacity, np.uint64)
        self.choices = np.zeros(capacity, np.uint64)
        self.knobs = np.zeros((capacity, 5), np.float32)
        self.num_special = 0  # rows that ask for more than a draw
        self._numbers = np.arange(capacity, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def numbers(self) -> NDArray[np.int32]:
        """0, 1, 2 and so on."""
        return self._numbers[: len(self.sequences)]

    @property
    def columns(self) -> tuple[NDArray[np.generic], ...]:
        return (
            self.tables,
            self.positions,
            self.generated,
            self.last_positions,
            self.sources,
            self.adapters,
            self.seeds,
            self.choices,
            self.knobs,
        )

    def join(self, sequence: Sequence, source: int) -> None:
        """Take a sequence that is all in the cache; the token after is output `source` of the step just launched."""
        row = sequence.row = len(self.sequences)
        self.sequences.append(sequence)
        self.tables[row] = 0
        self.tables[row, : len(sequence.blocks)] = sequence.blocks
        self.positions[row] = len(sequence.tokens)
        self.generated[row] = sequence.num_generated + 1
        self.last_positions[row] = sequence.request.sampling.max_tokens - 1
        self.sources[row] = source
        self.adapters[row] = -1 if sequence.adapter_slot is None else sequence.adapter_slot
        self.seeds[row] = sequence.seed
        self.choices[row] = sequence.choice
        self.knobs[row, :4] = knobs_of(sequence)
        self.num_special += sequence.is_special

    def leave(self, sequence: Sequence) -> None:
        """Give up a row; the last row takes its place."""
        row, last = sequence.row, len(self.sequences) - 1
        assert row is not None and self.sequences[row] is sequence
        moved = self.sequences.pop()
        if moved is not sequence:
            self.sequences[row] = moved
            moved.row = row
            for column in self.columns:
                column[row] = column[last]
        sequence.row = None
        self.num_special -= sequence.is_special

    def set_block(self, sequence: Sequence, index: int, block: int) -> None:
        self.tables[sequence.row, index] = block

    def advance(self) -> None:
        """All rows have gone into a step: the next token of row i is its output i."""
        count = len(self.sequences)
        self.positions[:count] += 1
        self.generated[:count] += 1
        self.sources[:count] = self.numbers


def knobs_of(sequence: Sequence) -> tuple[float, float, float, float]:
    """Temperature, top_k, top_p, min_p."""
    sampling = sequence.request.sampling
    return sampling.temperature, float(sampling.top_k), sampling.top_p, sampling.min_p
