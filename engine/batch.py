"""Batch: one forward pass as arrays. All tokens of all sequences stand in one row, packed.

Decode rows come first, one a sequence; then the prefill chunks, each a run of rows. A batch knows where its
rows go in the cache and which rows are to be sampled, and nothing of requests.
"""

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive tokens of one sequence's prompt: rows [start, start + length) of the batch."""

    start: int
    length: int
    context: int  # tokens of the sequence in the cache once these rows are written
    sequence: int  # its line of `block_tables`


@dataclass(frozen=True, slots=True)
class Batch:
    """T rows of S sequences; integers are int32."""

    tokens: mx.array  # (T,)
    positions: mx.array  # (T,)
    slots: mx.array  # (T,) where a row's keys and values are kept: block * block_size + offset
    sequence_of: mx.array  # (T,) a row's line of `block_tables`; row i of the decode rows has line i
    block_tables: mx.array  # (S, blocks of the longest sequence), 0 where a sequence has fewer
    output_rows: mx.array  # (R,) rows whose logits are wanted
    adapter_of: mx.array | None  # (T,) index in the adapter stack, -1 for none; None if no row has one
    num_decode_rows: int
    max_decode_context: int  # tokens of the longest sequence among the decode rows
    chunks: tuple[Chunk, ...]

    @property
    def num_rows(self) -> int:
        return self.tokens.size
