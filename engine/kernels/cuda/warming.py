"""Warming: one batch of each kind that serving will meet, so that nothing is compiled while somebody waits.

Their rows are written to the cache's first block, which belongs to nobody.
"""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from engine.batch import Batch, Chunk

FEW_AND_TILES = (1, 2, 4, 8, 16, 32, 64)  # numbers of rows that have kernels of their own
COMMON_RANKS = (16,)  # of adapters; the kernels for others are compiled with the first one that is wider


def row_counts(most: int) -> list[int]:
    """The numbers of rows, up to `most`, that are worth a run."""
    return sorted({min(count, most) for count in (*FEW_AND_TILES, most)})


def batches(max_rows: int, max_tokens: int, block_size: int) -> Iterator[Batch]:
    """Rows that decode, prompts, and both together."""
    for rows in row_counts(max_rows):
        yield made_batch(rows, 0, block_size)
    for tokens in row_counts(max_tokens):
        yield made_batch(0, tokens, block_size)
        if tokens > 1:
            yield made_batch(1, tokens - 1, block_size)


def made_batch(rows: int, tokens: int, block_size: int) -> Batch:
    """So many decode rows at the first position, and a prompt of so many tokens."""
    positions = np.concatenate([np.zeros(rows, np.int32), np.arange(tokens, dtype=np.int32)])
    sequences = rows + (1 if tokens else 0)
    ends = [*range(rows), *([rows + tokens - 1] if tokens else [])]
    return Batch(
        tokens=mx.array(positions * 0),
        positions=positions,
        slots=positions % block_size,
        sequence_of=np.minimum(np.arange(rows + tokens), rows),
        block_tables=np.zeros((sequences, max(8, -(-tokens // block_size)))),
        output_rows=ends,
        adapter_of=None,
        num_decode_rows=rows,
        max_decode_context=1 if rows else 0,
        chunks=(Chunk(rows, tokens, tokens, rows),) if tokens else (),
    )
