"""Batch: one forward pass as arrays. All tokens of all sequences stand in one row, packed.

Decode rows come first, one a sequence; then the prefill chunks, each a run of rows. A batch knows where its
rows go in the cache and which rows are to be sampled, and nothing of requests.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive tokens of one sequence's prompt: rows [start, start + length) of the batch."""

    start: int
    length: int
    context: int  # tokens of the sequence in the cache once these rows are written
    sequence: int  # its line of `block_tables`


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the host knows of T rows of S sequences; int32."""

    positions: NDArray[np.int32]  # (T,)
    slots: NDArray[np.int32]  # (T,) where a row's keys and values are kept: block * block_size + offset
    sequence_of: NDArray[np.int32]  # (T,) a row's line of `block_tables`; row i of the decode rows has line i
    block_tables: NDArray[np.int32]  # (S, blocks of the longest sequence), 0 where a sequence has fewer
    output_rows: NDArray[np.int32]  # (R,) rows whose logits are wanted
    adapter_of: NDArray[np.int32] | None  # (T,) index in the adapter stack, -1 for none; None if no row has one

    @classmethod
    def of(
        cls,
        positions: ArrayLike,
        slots: ArrayLike,
        sequence_of: ArrayLike,
        block_tables: ArrayLike,
        output_rows: ArrayLike,
        adapter_of: ArrayLike | None,
    ) -> Self:
        """Of numbers of any kind."""
        return cls(
            np.asarray(positions, np.int32),
            np.asarray(slots, np.int32),
            np.asarray(sequence_of, np.int32),
            np.asarray(block_tables, np.int32),
            np.asarray(output_rows, np.int32),
            None if adapter_of is None else np.asarray(adapter_of, np.int32),
        )


class Batch:
    """Rows as the host knows them (`numbers`), and the same as arrays of MLX, made once, for columns that ask for them.

    A column for a GPU has its own way to bring them there: memory that both sides touch is slow.
    """

    def __init__(
        self,
        tokens: mx.array,
        numbers: Numbers,
        num_decode_rows: int,
        max_decode_context: int,
        chunks: tuple[Chunk, ...],
    ) -> None:
        self.tokens = tokens  # (T,), maybe still on their way
        self.numbers = numbers
        self.num_decode_rows = num_decode_rows
        self.max_decode_context = max_decode_context  # tokens of the longest sequence among the decode rows
        self.chunks = chunks

    @property
    def num_rows(self) -> int:
        return self.tokens.size

    @cached_property
    def positions(self) -> mx.array:
        return mx.array(self.numbers.positions)

    @cached_property
    def slots(self) -> mx.array:
        return mx.array(self.numbers.slots)

    @cached_property
    def sequence_of(self) -> mx.array:
        return mx.array(self.numbers.sequence_of)

    @cached_property
    def block_tables(self) -> mx.array:
        return mx.array(self.numbers.block_tables)
