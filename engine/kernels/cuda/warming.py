"""Warming: one batch of each kind that serving will meet, so that nothing is compiled while somebody waits.

Their rows are written to the cache's first block, which belongs to nobody.
"""

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from engine.batch import Batch, Chunk, Numbers
from engine.cache import KVCache
from engine.kernels.cuda.adapters import Pair, blank, pairs_of, workplace_for
from engine.kernels.cuda.compiler import compile_together
from engine.kernels.cuda.halves import Halves
from engine.kernels.cuda.layout import ROW_BY_ROW
from engine.kernels.cuda.source import Launch, Launcher, Recorder
from engine.logprobs import score

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
        numbers=Numbers.of(
            positions=positions,
            slots=positions % block_size,
            sequence_of=np.minimum(np.arange(rows + tokens), rows),
            block_tables=np.zeros((sequences, max(8, -(-tokens // block_size)))),
            output_rows=ends,
            adapter_of=None,
        ),
        num_decode_rows=rows,
        max_decode_context=1 if rows else 0,
        chunks=(Chunk(rows, tokens, tokens, rows),) if tokens else (),
    )


def run_mlx_kernels(cache: KVCache, vocabulary: int) -> None:
    """What is MLX's own and compiled on its first use: rows that leave, logprobs, and blocks that are copied."""
    tokens, logits = mx.zeros(4, mx.int32), mx.zeros((4, vocabulary), mx.float32)
    some = mx.array([0, 2], mx.int32)
    found = [tokens[some], mx.concatenate([tokens, tokens[some]])]
    for num_top in (0, 2):
        found += score(logits[some], tokens[some], num_top).arrays()
    cache.copy_blocks([(0, 0)])
    mx.eval(found, cache.arrays())


def compile_addresses() -> None:
    """What the first adapter needs before any row has it."""
    numbers = mx.zeros((2, 4), mx.int32)
    pair = Pair(mx.zeros((16, 1024), mx.bfloat16), mx.zeros((16, 128), mx.bfloat16), numbers, 16)
    pairs_of((pair,), workplace_for([pair]))


class Gathering(Recorder):
    """Launches within it are not carried out; the texts of their kernels are noted."""

    def __init__(self) -> None:
        self.texts: dict[Launcher, str] = {}  # one each, however many rows it is called for

    def record(self, launch: Launch) -> list[mx.array]:
        if launch.launcher not in self.texts:
            _, self.texts[launch.launcher] = launch.launcher.whole(launch.input_dtypes, launch.dtypes, launch.numbers)
        return [mx.zeros(shape, dtype) for shape, dtype in zip(launch.shapes, launch.dtypes, strict=True)]


def compile_all_products(halves: Halves, max_rows: int, max_tokens: int) -> None:
    """Those of every number of rows, side by side if the disk does not have them, before anything is run."""
    with Gathering() as gathered:
        build_products(halves, max_rows, max_tokens)
    compile_together(gathered.texts.values())


def build_products(halves: Halves, max_rows: int, max_tokens: int) -> None:
    for rows in {*range(1, max_rows + 1), *range(64, max_tokens + 1, 64), max_tokens}:
        is_common = rows in FEW_AND_TILES or rows % 64 == 0 or rows == max_tokens
        compile_products(halves, rows, COMMON_RANKS if is_common else ())


def compile_products(halves: Halves, rows: int, ranks: tuple[int, ...]) -> None:
    """The products of a layer for so many rows, with adapters of some ranks and without: built, never computed."""
    for matrices in halves.products:
        operands = matrices.operands
        is_last = operands.norm is None  # of its half: rows come laid out, and a residual is added
        layout = matrices.layout(rows) if is_last else ROW_BY_ROW
        give = halves.down.layout(rows) if operands.is_gated and halves.down else ROW_BY_ROW
        x = mx.zeros(layout.shape(rows, operands.inner), mx.bfloat16)
        added = mx.zeros((rows, operands.sum_width), mx.bfloat16) if is_last else None
        for adapted in (None, *(blank(operands, rank) for rank in ranks)):
            matrices(x, added, is_laid_out=is_last, give=give, adapted=adapted)
