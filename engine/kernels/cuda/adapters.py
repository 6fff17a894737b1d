"""Adapters on CUDA: rows times their own low-rank pairs, whoever stands beside them, in two launches a product.

Rows are sorted by adapter into tiles of eight, so that a tile reads its adapter's matrices once, and ranks may differ.
What the adapters add goes into the product as what it adds anyway: no launch of its own joins them.
"""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.kernels.cuda.operands import Operands, without
from engine.kernels.cuda.source import Constants, Launcher
from engine.kernels.cuda.tiles import ROW_BY_ROW, Layout
from engine.lora import AdapterStack, RankLayout, StackedLowRank

TILE = 8  # rows
LINE = TILE + 2  # adapter, rows in use, rows
RANKS = (16, 32, 64, 128)  # kernels are for ranks up to these


def plan_tiles(adapter_of: NDArray[np.int32]) -> NDArray[np.int32]:
    """The rows of a batch by adapter, (tiles, LINE); their number is a power of two, the last ones may be empty."""
    order = np.argsort(adapter_of, kind="stable").astype(np.int32)
    adapters, starts, counts = np.unique(adapter_of[order], return_index=True, return_counts=True)
    num_tiles = -(-counts // TILE)
    firsts = np.cumsum(num_tiles) - num_tiles
    total = int(num_tiles.sum())
    tiles = np.zeros((1 << (total - 1).bit_length(), LINE), np.int32)
    of_row = np.repeat(np.arange(len(adapters)), counts)
    place = np.arange(len(order)) - starts[of_row]
    tiles[firsts[of_row] + place // TILE, 2 + place % TILE] = order
    of_tile = np.repeat(np.arange(len(adapters)), num_tiles)
    tiles[:total, 0] = adapters[of_tile]
    tiles[:total, 1] = np.minimum(TILE, counts[of_tile] - (np.arange(total) - firsts[of_tile]) * TILE)
    return tiles


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of modules that take the same rows; None where no adapter changes a module."""

    stacked: tuple[StackedLowRank | None, ...]
    rank: int  # of RANKS, that all are within

    @property
    def present(self) -> int:
        return sum(1 << index for index, one in enumerate(self.stacked) if one is not None)


class StackOnDevice:
    """An adapter stack as the kernels read it: bf16, and what is asked of it gathered by layer and product."""

    def __init__(self, stack: AdapterStack) -> None:
        self._layouts: dict[int, RankLayout] = {}
        self._pairs: dict[tuple[int, tuple[str, ...]], Pairs | None] = {}
        self.layers = [{name: self.on_device(one) for name, one in layer.items()} for layer in stack.layers]
        arrays = [array for layer in self.layers for one in layer.values() for array in (one.a, one.b)]
        mx.eval(arrays, [array for one in self._layouts.values() for array in (one.starts, one.scale)])

    @property
    def is_narrow(self) -> bool:
        """Whether all ranks are such as the kernels take."""
        return all(greatest_rank(one) <= RANKS[-1] for layer in self.layers for one in layer.values())

    def pairs(self, layer: int, names: tuple[str, ...]) -> Pairs | None:
        key = (layer, names)
        if key not in self._pairs:
            found = tuple(self.layers[layer].get(name) for name in names)
            greatest = max((greatest_rank(one) for one in found if one is not None), default=0)
            rank = next(rank for rank in RANKS if rank >= greatest)
            self._pairs[key] = Pairs(found, rank) if greatest else None
        return self._pairs[key]

    def on_device(self, one: StackedLowRank) -> StackedLowRank:
        layout = one.layout
        if id(layout) not in self._layouts:
            scale, starts = computed(layout.scale), computed(layout.starts)
            self._layouts[id(layout)] = RankLayout(layout.parts, layout.owner, scale, starts)
        return StackedLowRank(one.a.astype(mx.bfloat16), one.b.astype(mx.bfloat16), self._layouts[id(layout)])


def greatest_rank(one: StackedLowRank) -> int:
    return max(rank for rank, _ in one.layout.parts)


def computed(numbers: mx.array) -> mx.array:
    """The same in the device's own memory, where what was computed there lies if it is more than 8 bytes."""
    return mx.concatenate([numbers, mx.zeros(16, numbers.dtype)])


def add_pairs(
    operands: Operands,
    pairs: Pairs,
    tiles: mx.array,
    x: mx.array,
    rows: int,
    added: mx.array | None,
    layout: Layout = ROW_BY_ROW,
) -> mx.array:
    """`added` (T, out), if any, plus what each row's adapter makes of it; x lies as `layout` says, not normed yet."""
    shrink, expand = kernels(operands, pairs.rank, layout, added is not None)
    first = next(one for one in pairs.stacked if one is not None)
    stacked = [first if one is None else one for one in pairs.stacked]  # what is not `present` is not read
    count, modules, width = tiles.shape[0], len(stacked), operands.sum_width
    norm, extra = [] if operands.norm is None else [operands.norm], [] if added is None else [added]
    parts = shrink(
        [x, tiles, *norm, *(array for one in stacked for array in (one.a, one.layout.starts))],
        (count, modules, num_spans(operands)),
        [(num_spans(operands), count, TILE, modules * (pairs.rank + 4))],
        [mx.float32],
        present=pairs.present,
    )[0]
    return expand(
        [parts, tiles, *extra, *(array for one in stacked for array in (one.b, one.layout.starts, one.layout.scale))],
        (-(-width // 512), count, 1),
        [(rows, width)],
        [mx.bfloat16],
        present=pairs.present,
    )[0]


def blank_pairs(operands: Operands, rank: int) -> Pairs:
    """Of an adapter that is nobody's, for a product's modules."""
    layout = RankLayout(((rank, 0.0),), mx.zeros(rank, mx.int32), mx.zeros(rank), mx.zeros(2, mx.int32))

    def blank(width: int) -> StackedLowRank:
        return StackedLowRank(
            mx.zeros((rank, operands.inner), mx.bfloat16), mx.zeros((rank, width), mx.bfloat16), layout
        )

    return Pairs(tuple(blank(w.shape[0]) for w in operands.weights), rank)


def num_spans(operands: Operands) -> int:
    """Parts of the inner dimension, of about a thousand columns; four warps part each by 32."""
    return max(count for count in range(1, 2 + operands.inner // 1024) if operands.inner % (count * 128) == 0)


def kernels(operands: Operands, rank: int, layout: Layout, is_added: bool) -> tuple[Launcher, Launcher]:
    """Those that shrink and expand, for ranks up to `rank`."""
    shape = (operands.inner, *(w.shape[0] for w in operands.weights), operands.norm is not None, operands.eps)
    shrink_key, expand_key = ("shrink", shape, rank, layout), ("expand", shape, rank, is_added)
    if shrink_key not in operands.launchers:
        operands.launchers[shrink_key] = build_shrink(operands, rank, layout)
    if expand_key not in operands.launchers:
        operands.launchers[expand_key] = build_expand(operands, rank, is_added)
    return operands.launchers[shrink_key], operands.launchers[expand_key]


def constants(operands: Operands, rank: int) -> Constants:
    return {
        "K": operands.inner,
        "MODULES": len(operands.weights),
        "RANK": rank,
        "SPANS": num_spans(operands),
        "NORM": operands.norm is not None,
    }


def build_shrink(operands: Operands, rank: int, layout: Layout) -> Launcher:
    modules = range(len(operands.weights))
    names = ["x", "tiles", *(["norm"] if operands.norm is not None else [])]
    names += [f"{kind}{index}" for index in modules for kind in ("a", "starts")]
    numbers = {**constants(operands, rank), **layout.constants}
    prelude = missing(len(modules), "a", "starts") + without(names, "norm")
    return Launcher("shrink", [], names, ["out"], numbers, threads=128, prelude=prelude)


def build_expand(operands: Operands, rank: int, is_added: bool) -> Launcher:
    widths = [w.shape[0] for w in operands.weights] + [0, 0]
    names = ["parts", "tiles", *(["added"] if is_added else [])]
    names += [f"{kind}{index}" for index in range(len(operands.weights)) for kind in ("b", "starts", "scale")]
    numbers = {**constants(operands, rank), "N0": widths[0], "N1": widths[1], "N2": widths[2], "ADDED": is_added}
    prelude = missing(len(operands.weights), "b", "starts", "scale") + without(names, "added")
    defines = f"#define EPS {operands.eps!r}f\n"
    return Launcher("expand", [], names, ["out"], numbers, threads=128, defines=defines, prelude=prelude)


def missing(count: int, *kinds: str) -> str:
    """Names for the modules that a product does not have; nobody reads them."""
    return "".join(f"#define {kind}{index} {kind}0\n" for index in range(count, 3) for kind in kinds)
