"""Paged attention on CUDA: rows that decode, and rows of prompts, against the cache where it lies.

The kernels write the rows' keys and values into the cache's own memory. MLX sees an input, not a write; what keeps
order is that within a step everything that reads a layer's new keys takes the writer's output too, and that steps run
one after another on one stream (two forward passes in one evaluation would break that). Writing by scatter would copy
the whole cache whenever the step before still runs, since MLX pins its inputs until it ends.
"""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.batch import Batch, Numbers
from engine.config import ModelConfig
from engine.kernels.cuda.layout import ROW_BY_ROW, Layout
from engine.kernels.cuda.mailbox import HEADER, Mailbox
from engine.kernels.cuda.operands import MULTIPROCESSORS, without
from engine.kernels.cuda.source import Launcher
from engine.rotary import rotary

WARPS = 4
MAX_DECODE_ROWS = 2048
STAGES, CHUNK_STAGES = 3, 6  # tiles of keys on their way, and in use
MAX_PARTS = 32


@dataclass(frozen=True, slots=True)
class Staged:
    """A batch's arrays in the device's own memory."""

    positions: mx.array
    slots: mx.array
    tables: mx.array
    turns: mx.array  # (T, head_dim / 2, 2): cosine and sine

    def after(self, first: int) -> "Staged":
        """Without the first rows."""
        return Staged(self.positions[first:], self.slots[first:], self.tables, self.turns[first:])


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """What attention derives from a batch, once for all layers."""

    batch: Batch
    num_parts: int  # of the context of decode rows
    staged: Staged
    prompts: Staged  # of the prompts' rows
    pieces: mx.array | None  # (pieces, 3): first row, end and sequence, rows counted from the first prompt's


class Attention:
    """The attention of one model."""

    def __init__(self, config: ModelConfig, block_size: int, mailbox: Mailbox) -> None:
        self.config = config
        self.block_size = block_size
        self.mailbox = mailbox
        turning = rotary(config)
        self.waves = turning.wavelengths * 1  # computed, so in the device's own memory
        self.tickets = mx.zeros((MAX_DECODE_ROWS * config.num_kv_heads,), mx.int32)
        self.defines = (
            f"#define EPS {config.rms_norm_eps!r}f\n#define MAGNITUDE {float(turning.magnitude)!r}f\n"
            f"#define SCALE {config.head_dim**-0.5 * math.log2(math.e)!r}f\n"  # of queries, for powers of two
        )
        group = config.num_heads // config.num_kv_heads
        self.heads_abreast = 4 if group % 4 == 0 else 2 if group % 2 == 0 else 1
        self._launchers: dict[object, Launcher] = {}

    @staticmethod
    def can_attend(config: ModelConfig, block_size: int) -> bool:
        group, rest = divmod(config.num_heads, config.num_kv_heads)
        return config.head_dim in (64, 96, 128) and group <= 8 and not rest and block_size % 16 == 0

    def plan(self, batch: Batch) -> PlannedBatch:
        first, size = batch.num_decode_rows, 16 * WARPS // self.heads_abreast
        pieces = [
            (start - first, min(start + size, chunk.start + chunk.length) - first, chunk.sequence)
            for chunk in batch.chunks
            for start in range(chunk.start, chunk.start + chunk.length, size)
        ]
        lines = len(batch.numbers.block_tables)
        staged = self.stage(self.send(batch), batch.num_rows, (lines, self.table_width(batch.numbers)))
        return PlannedBatch(
            batch,
            self.num_parts(first, batch.max_decode_context),
            staged,
            staged.after(first) if first and pieces else staged,
            self.mailbox.bring(np.array(pieces, np.int32)) if pieces else None,
        )

    def send(self, batch: Batch) -> mx.array:
        """Where the batch's numbers are, for `stage`."""
        return self.mailbox.send(self.letter(batch.numbers))

    def letter(self, numbers: Numbers) -> list[NDArray[np.int32]]:
        """What `stage` reads."""
        lines, used = numbers.block_tables.shape
        tables = np.zeros((lines, self.table_width(numbers)), np.int32)
        tables[:, :used] = numbers.block_tables
        return [numbers.positions, numbers.slots, tables]

    def table_width(self, numbers: Numbers) -> int:
        """Of the block tables: a power of two, for a graph is built for each width."""
        return 1 << int(numbers.block_tables.shape[1] - 1).bit_length()

    def stage(self, where: mx.array, rows: int, table_shape: tuple[int, ...]) -> Staged:
        half = self.config.head_dim // 2
        padded = (max(rows, 16),)  # what takes 8 bytes or less lies in the host's memory
        lines, width = table_shape
        outputs = self.launcher("stage", False, ROW_BY_ROW)(
            [where, self.waves],
            (max(rows, 32), 1, 1),
            [padded, padded, (max(lines, 2), width), (rows, half, 2)],
            [mx.int32, mx.int32, mx.int32, mx.float32],
        )
        return Staged(*outputs)

    def num_parts(self, rows: int, context: int) -> int:
        """Parts of the context, a power of two: as many blocks as run at once, and four tiles of keys for each."""
        blocks = max(1, rows * self.config.num_kv_heads)
        parts = 1
        while parts < MAX_PARTS and parts * blocks <= MULTIPROCESSORS and parts * 64 < context:
            parts *= 2
        return parts

    def decode(
        self,
        qkv: mx.array,
        norms: list[mx.array],
        keys: mx.array,
        values: mx.array,
        staged: Staged,
        rows: int,
        num_parts: int,
        give: Layout = ROW_BY_ROW,
    ) -> mx.array:
        """Write and attend for the first rows of (T, (heads + 2 kv_heads) * head_dim): (rows, heads * head_dim).

        `give`: how the result shall lie.
        """
        config = self.config
        launcher = self.launcher("attend_decode", bool(norms), give)
        group = config.num_heads // config.num_kv_heads
        part = (rows, config.num_kv_heads, num_parts, group * (config.head_dim + 2)) if num_parts > 1 else (16,)
        inputs = [qkv, staged.positions, staged.tables, staged.turns, keys, values, *norms, self.tickets]
        return launcher(
            inputs,
            (config.num_kv_heads, rows, num_parts),
            [give.shape(rows, config.num_heads * config.head_dim), part],
            [mx.bfloat16, mx.float32],
            table_width=staged.tables.shape[1],
        )[0]

    def chunks(
        self,
        qkv: mx.array,
        norms: list[mx.array],
        keys: mx.array,
        values: mx.array,
        planned: PlannedBatch,
        give: Layout = ROW_BY_ROW,
    ) -> mx.array:
        """Write and attend for the prompts' rows, (C, (heads + 2 kv_heads) * head_dim): (C, heads * head_dim)."""
        config, staged = self.config, planned.prompts
        assert planned.pieces is not None
        rows, heads = qkv.shape[0], config.num_heads + 2 * config.num_kv_heads
        width = config.num_heads * config.head_dim
        q = self.launcher("place", bool(norms), ROW_BY_ROW)(
            [qkv, staged.slots, staged.turns, keys, values, *norms],
            (rows, -(-heads // WARPS), 1),
            [(rows, width)],
            [mx.bfloat16],
        )[0]
        return self.launcher("attend_chunk", False, give)(
            [q, staged.positions, staged.tables, planned.pieces, keys, values],
            (planned.pieces.shape[0], config.num_heads // self.heads_abreast, 1),
            [give.shape(rows, width)],
            [mx.bfloat16],
            table_width=staged.tables.shape[1],
        )[0]

    def launcher(self, name: str, is_normed: bool, give: Layout) -> Launcher:
        key = (name, is_normed, give)
        found = self._launchers.get(key)
        if found is None:
            found = self._launchers[key] = self.build(name, is_normed, give)
        return found

    def build(self, name: str, is_normed: bool, give: Layout) -> Launcher:
        config = self.config
        norms = ["q_norm", "k_norm"] if is_normed else []
        inputs = {
            "stage": ["where", "waves"],
            "attend_decode": ["qkv", "positions", "tables", "turns", "keys", "values", *norms, "tickets"],
            "place": ["qkv", "slots", "turns", "keys", "values", *norms],
            "attend_chunk": ["q", "positions", "tables", "pieces", "keys", "values"],
        }[name]
        outputs = {
            "stage": ["positions", "slots", "tables", "turns"],
            "attend_decode": ["out", "part"],
        }.get(name, ["out"])
        constants = {
            "D": config.head_dim,
            "HEADS": config.num_heads,
            "KV": config.num_kv_heads,
            "SIZE": self.block_size,
            "NORMED": is_normed,
            "WINDOW": config.sliding_window or 0,
            "WARPS": WARPS,
            "STAGES": CHUNK_STAGES if name == "attend_chunk" else STAGES,
            "ABREAST": self.heads_abreast,
            **give.constants,
            "HEADER": HEADER,
        }
        d = config.head_dim
        tile = 32 * (2 * d + 16)
        shared = {"attend_decode": WARPS * STAGES * tile, "attend_chunk": CHUNK_STAGES * tile}.get(name, 0)
        return Launcher(
            name,
            ["flash"],
            inputs,
            outputs,
            constants,
            threads=WARPS * 32,
            blocks={"attend_decode": 2, "attend_chunk": 3}.get(name, 1),
            shared_memory=shared,
            defines=self.defines,
            prelude=without(inputs, "q_norm", "k_norm"),
        )
