"""Low rank: how a product's launches come to add what adapters make of its rows.

Shrinking, x A', goes along with the product as blocks of the same launch. Expanding, low B, goes where the product's
sums are brought together: at the end of the product for few rows, in the launch that sums the parts for up to 64. So
a product has no more launches than without adapters, which matters where the host needs longer for a launch than
the device. For more rows the two are launches of their own, as a tile of weights is used up before the next one comes.
"""

from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx

from engine.kernels.cuda.adapters import TILE, Adapted
from engine.kernels.cuda.layout import ROW_BY_ROW, Layout
from engine.kernels.cuda.operands import Operands, without
from engine.kernels.cuda.source import Constants, Launcher, text

WARPS = 4  # of a block that only shrinks
NAMES = ("tiles", "table")  # of what a kernel is told of adapters


@lru_cache(maxsize=1024)
def num_spans(inner: int, warps: int) -> int:
    """Parts of the inner dimension, of about a thousand columns; warps part each by 32."""
    return max(count for count in range(1, 2 + inner // 1024) if inner % (count * 32 * warps) == 0)


@dataclass(frozen=True, slots=True)
class Shrinking:
    """The blocks that shrink, for a product's inputs and ranks up to `rank`."""

    operands: Operands
    rank: int
    layout: Layout
    is_normed: bool  # x is to be normed first
    warps: int = WARPS
    ahead: int = 8  # loads of a lane before the first is used, as registers allow

    @property
    def spans(self) -> int:
        return num_spans(self.operands.inner, self.warps)

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

    def blocks(self, adapted: Adapted) -> int:
        return adapted.tiles.shape[0] * len(self.operands.weights) * self.spans

    def shape(self, adapted: Adapted) -> tuple[int, ...]:
        """Of what they give."""
        return self.spans, adapted.tiles.shape[0], TILE, len(self.operands.weights) * (self.rank + 4)

    @property
    def shared_memory(self) -> int:
        return self.warps * (self.rank + 1) * TILE * 4

    def text(self, index: str, then: str = "") -> str:
        """What the blocks of a launch do that are not the product's: those to which `index` gives a number."""
        return (
            f"const int num_shrinking = num_tiles * MODULES * SPANS, shrinking = {index};\n"
            f"if (shrinking >= 0) {{\nfollow();\n"
            f"if (shrinking < num_shrinking) {{\n{text('shrink')}\n{then}\n}}\nreturn;\n}}\n"
        )


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
            prelude=without(inputs, "norm") + "const int shrinking = blockIdx.x;\n",
        )
    given = [x, *([] if operands.norm is None else [operands.norm]), *shrinking.inputs(adapted)]
    grid, shapes = (shrinking.blocks(adapted), 1, 1), [shrinking.shape(adapted)]
    return launcher(given, grid, shapes, [mx.float32], **shrinking.numbers(adapted))[0]


def expand(
    operands: Operands,
    adapted: Adapted,
    rows: int,
    added: mx.array | None,
    sums: mx.array | None = None,
    give: Layout = ROW_BY_ROW,
    *,
    lows: mx.array | None = None,
    is_normed: bool = False,
) -> mx.array:
    """`added`, if any, and what adapters add; with the product's parts, `sums`, all that the product gives.

    `lows`: what a launch that only shrinks gave. `is_normed`: the norm's factor is still to be had from it.
    """
    kind, extra = operands.added(added) if sums is not None else (int(added is not None), added)
    is_gated = operands.is_gated and sums is not None
    spans = num_spans(operands.inner, WARPS)
    key = (operands.form, "expand", adapted.pairs.rank, spans, kind, sums is not None, give, lows is None, is_normed)
    launcher = operands.launchers.get(key)
    if launcher is None:
        optional = {"lows": lows is not None, "sums": sums is not None, "added": bool(kind)}
        inputs = [*NAMES, *(name for name, is_there in optional.items() if is_there)]
        constants: Constants = {
            **low_rank_constants(operands, adapted.pairs.rank, spans, is_normed),
            "SUMMED": sums is not None,
            "ADDED": kind,
            "GATED": is_gated,
            **give.constants,
        }
        prelude = without(inputs, "added")
        prelude += "" if sums is not None else "const float* sums = 0;\n"
        launcher = operands.launchers[key] = Launcher(
            "expand",
            [],
            inputs,
            ["out"],
            constants,
            threads=32 * TILE,
            defines=f"#define EPS {operands.eps!r}f\n#define APART {int(lows is not None)}\n",
            prelude=prelude,
        )
    width = operands.width if is_gated else operands.sum_width
    given = [adapted.tiles, adapted.pairs.table, *(array for array in (lows, sums, extra) if array is not None)]
    numbers = {"present": adapted.pairs.present, "rows": rows, "splits": 0 if sums is None else sums.shape[0]}
    grid, shapes = (width // 128, adapted.tiles.shape[0], 1), [give.shape(rows, width)]
    return launcher(given, grid, shapes, [mx.bfloat16], **numbers)[0]


def add_apart(
    operands: Operands, adapted: Adapted, x: mx.array, rows: int, added: mx.array | None, layout: Layout = ROW_BY_ROW
) -> mx.array:
    """`added` (T, out), if any, plus what each row's adapter makes of it, in two launches."""
    lows = shrink(operands, adapted, x, layout)
    return expand(operands, adapted, rows, added, lows=lows, is_normed=operands.norm is not None)


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
