"""Low rank: how a product's launches come to add what adapters make of its rows.

For few rows, shrinking, x A', goes along with the product as blocks of the same launch, and expanding, low B, goes
where the product's sums are brought together. For up to 64 rows both are done by warps of the product's own blocks. So
a product has no more launches than without adapters, and adapters come from memory while weights are multiplied. For
more rows the two are launches of their own, as a tile of weights is used up before the next one comes.
"""

from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx

from engine.kernels.cuda.adapters import TILE, Adapted
from engine.kernels.cuda.layout import ROW_BY_ROW, Layout
from engine.kernels.cuda.operands import Operands, without
from engine.kernels.cuda.source import Constants, Launcher, text

WARPS = 4  # of a block that only shrinks
OWN_PLACE = """extern __shared__ float scratch[];
auto meet_shrinkers = [] { __syncthreads(); };
auto find_slot = [&](int module, int tile) -> int4 {
const int adapter = tiles[tile * 10];
return adapter < 0 || !(present >> module & 1) ? make_int4(0, 0, 0, 0) : ((const int4*)table[module * 3 + 2])[adapter];
};
"""
NAMES = ("tiles", "table")  # of what a kernel is told of adapters


@lru_cache(maxsize=1024)
def num_spans(inner: int, warps: int, most: int = 0) -> int:
    """Parts of the inner dimension, of about a thousand columns if not told otherwise; warps part each by 32."""
    return max(count for count in range(1, 1 + (most or 1 + inner // 1024)) if inner % (count * 32 * warps) == 0)


@dataclass(frozen=True, slots=True)
class Shrinking:
    """Shrinking for a product's inputs and ranks up to `rank`, in shares that a block or some warps of one take."""

    operands: Operands
    rank: int
    layout: Layout
    is_normed: bool  # x is to be normed first
    warps: int = WARPS
    ahead: int = 8  # loads of a lane before the first is used, as registers allow
    most_spans: int = 0  # of the inner dimension

    @property
    def spans(self) -> int:
        return num_spans(self.operands.inner, self.warps, self.most_spans)

    @property
    def constants(self) -> Constants:
        return {
            **low_rank_constants(self.operands, self.rank, self.spans, self.is_normed),
            "SHRINK_WARPS": self.warps,
            "AHEAD": self.ahead,
            "X_ORDER": self.layout.order,
            "X_TOKENS": self.layout.tokens,
        }

    def inputs(self, adapted: Adapted) -> list[mx.array]:
        return [adapted.tiles, adapted.pairs.table]

    def numbers(self, adapted: Adapted) -> dict[str, int]:
        return {"num_tiles": adapted.tiles.shape[0], "present": adapted.pairs.present}

    def shares(self, adapted: Adapted) -> int:
        return adapted.tiles.shape[0] * len(self.operands.weights) * self.spans

    def shape(self, adapted: Adapted) -> tuple[int, ...]:
        """Of what they give."""
        return self.spans, adapted.tiles.shape[0], TILE, len(self.operands.weights) * (self.rank + 4)

    @property
    def shared_memory(self) -> int:
        return self.warps * (self.rank + 1) * TILE * 4

    def text(self, place: str = OWN_PLACE) -> str:
        """What is done for a `share`; `place`: where warps put their sums, and how they wait for each other."""
        return place + text("shrink")


def shrink(operands: Operands, adapted: Adapted, x: mx.array, layout: Layout) -> mx.array:
    """In a launch of its own; x lies as `layout` says, not normed yet."""
    key = (operands.form, "shrink", adapted.pairs.rank, layout)
    shrinking = Shrinking(operands, adapted.pairs.rank, layout, operands.norm is not None)
    launcher = operands.launchers.get(key)
    if launcher is None:
        inputs = ["x", *(["norm"] if operands.norm is not None else []), *NAMES]
        launcher = operands.launchers[key] = Launcher(
            "shrink",
            ["weights"],
            inputs,
            ["lows"],
            shrinking.constants,
            threads=32 * WARPS,
            shared_memory=shrinking.shared_memory,
            defines="#define APART 1\n",
            prelude=without(inputs, "norm") + "const int share = blockIdx.x;\n" + OWN_PLACE,
        )
    given = [x, *([] if operands.norm is None else [operands.norm]), *shrinking.inputs(adapted)]
    grid, shapes = (shrinking.shares(adapted), 1, 1), [shrinking.shape(adapted)]
    return launcher(given, grid, shapes, [mx.float32], **shrinking.numbers(adapted))[0]


def expand(operands: Operands, adapted: Adapted, rows: int, added: mx.array | None, lows: mx.array) -> mx.array:
    """`added`, if any, and what adapters add, in a launch of its own."""
    is_normed = operands.norm is not None  # the norm's factor is still to be had
    key = (operands.form, "expand", adapted.pairs.rank, added is not None)
    launcher = operands.launchers.get(key)
    if launcher is None:
        inputs = [*NAMES, "lows", *(["added"] if added is not None else [])]
        spans = num_spans(operands.inner, WARPS)
        constants = low_rank_constants(operands, adapted.pairs.rank, spans, is_normed) | {"ADDED": added is not None}
        launcher = operands.launchers[key] = Launcher(
            "expand",
            [],
            inputs,
            ["out"],
            constants,
            threads=32 * TILE,
            defines=f"#define EPS {operands.eps!r}f\n",
            prelude=without(inputs, "added"),
        )
    width = operands.sum_width
    given = [adapted.tiles, adapted.pairs.table, lows, *([] if added is None else [added])]
    grid = (width // 128, adapted.tiles.shape[0], 1)
    return launcher(given, grid, [(rows, width)], [mx.bfloat16], present=adapted.pairs.present)[0]


def add_apart(
    operands: Operands, adapted: Adapted, x: mx.array, rows: int, added: mx.array | None, layout: Layout = ROW_BY_ROW
) -> mx.array:
    """`added` (T, out), if any, plus what each row's adapter makes of it, in two launches."""
    return expand(operands, adapted, rows, added, shrink(operands, adapted, x, layout))


def low_rank_constants(operands: Operands, rank: int, spans: int, is_normed: bool) -> Constants:
    widths = [w.shape[0] for w in operands.weights] + [0, 0]
    return {
        "K": operands.inner,
        "MODULES": len(operands.weights),
        "RANK": rank,
        "SPANS": spans,
        "NORM": is_normed,
        "N0": widths[0],
        "N1": widths[1],
        "N2": widths[2],
    }
