"""Adapters on CUDA: whose low-rank pairs each row of a batch needs, as the kernels take it. Launches nothing.

Rows are sorted by adapter into tiles of eight, so that a tile reads its adapter's matrices once, and ranks may differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.kernels.cuda import driver
from engine.kernels.cuda.addressing import table_of
from engine.kernels.cuda.operands import Operands
from engine.lora import AdapterStack, RankLayout, StackedLowRank

TILE = 8  # rows
LINE = TILE + 2  # adapter, rows in use, rows
MOST_TILES = 64  # that products take without a launch of their own
RANKS = (16, 32, 64, 128)  # kernels are for ranks up to these
QKV, OUTPUT, GATE_UP, DOWN = ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)
PRODUCTS = (QKV, OUTPUT, GATE_UP, DOWN)  # modules that take the same rows
TABLE = 16  # addresses of a product's table, of which 11 are used


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
class Pair:
    """One module's low-rank pairs of all adapters."""

    left: mx.array  # (R, in)
    right: mx.array  # (R, out)
    slots: mx.array  # (slots, 4): first rank row, rank, the scale's bits, nothing
    rank: int  # the greatest


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of modules that take the same rows; None where no adapter changes a module.

    A kernel gets them as one table of addresses: MLX needs as long for ten more inputs of a launch as for a launch.
    So these arrays live for as long as a kernel may run that has the table.
    """

    modules: tuple[Pair | None, ...]
    rank: int  # of RANKS, that all are within
    table: mx.array  # of each module left, right and slots, then the stack's workplace

    @property
    def present(self) -> int:
        return sum(1 << index for index, one in enumerate(self.modules) if one is not None)


@dataclass(frozen=True, slots=True)
class Workplace:
    """What is written and used up within a product; products of a stack run one after another, so one is enough."""

    finished: mx.array  # counts shares, blocks and shares given out, and is zero between two launches
    lows: mx.array


def workplace_for(pairs: Sequence[Pair]) -> Workplace:
    """Large enough for three such modules and as many adapters as rows."""
    sizes = [(1 + pair.left.shape[1] // 1024) * (rank_above(pair.rank) + 4) for pair in pairs]
    return Workplace(mx.zeros(16, mx.int32), mx.zeros(3 * MOST_TILES * TILE * max(sizes, default=1), mx.float32))


def rank_above(rank: int) -> int:
    return next((known for known in RANKS if known >= rank), RANKS[-1])


def pairs_of(modules: tuple[Pair | None, ...], workplace: Workplace) -> Pairs | None:
    greatest = max((one.rank for one in modules if one is not None), default=0)
    if not greatest:
        return None
    first = next(one for one in modules if one is not None)
    three = [one or first for one in (*modules, None, None)][:3]  # what is not `present` is not read
    given = [array for one in three for array in (one.left, one.right, one.slots)]
    table = table_of([*given, workplace.finished, workplace.lows], TABLE)
    return Pairs(modules, rank_above(greatest), table)


@dataclass(frozen=True, slots=True)
class Adapted:
    """What a product's rows get of their adapters."""

    pairs: Pairs
    tiles: mx.array


class Stack(Protocol):
    """Adapters by layer and product."""

    def pairs(self, layer: int, names: tuple[str, ...]) -> Pairs | None: ...


@dataclass(frozen=True, slots=True)
class RowsOnDevice:
    """Which row has which adapter."""

    stack: Stack
    tiles: mx.array

    def of(self, layer: int, names: tuple[str, ...]) -> Adapted | None:
        """What they make of some modules of a layer; None if no adapter changes any of these."""
        pairs = self.stack.pairs(layer, names)
        return None if pairs is None else Adapted(pairs, self.tiles)


class StackOnDevice:
    """An adapter stack as the kernels read it: bf16, and what is asked of it gathered by layer and product."""

    def __init__(self, stack: AdapterStack) -> None:
        self._slots: dict[int, mx.array] = {}
        self._pairs: dict[tuple[int, tuple[str, ...]], Pairs | None] = {}
        self.layers = [{name: self.on_device(one) for name, one in layer.items()} for layer in stack.layers]
        pairs = [pair for layer in self.layers for pair in layer.values()]
        self.workplace = workplace_for(pairs)
        mx.eval(
            [array for pair in pairs for array in (pair.left, pair.right, pair.slots)],
            self.workplace.finished,
            self.workplace.lows,
        )

    def __del__(self) -> None:
        mx.synchronize()  # a step on its way reads what MLX does not know that it reads
        driver.synchronize()

    def let_go(self) -> None:
        """It goes, and is made anew: graphs hold the addresses of all its tensors, and others will lie elsewhere."""

    @property
    def is_narrow(self) -> bool:
        """Whether all ranks are such as the kernels take."""
        return all(one.rank <= RANKS[-1] for layer in self.layers for one in layer.values())

    def pairs(self, layer: int, names: tuple[str, ...]) -> Pairs | None:
        """Asked for outside of a graph first, for the table is made then."""
        key = (layer, names)
        if key not in self._pairs:
            found = self._pairs[key] = pairs_of(tuple(self.layers[layer].get(name) for name in names), self.workplace)
            if found is not None:
                mx.eval(found.table)
        return self._pairs[key]

    @cached_property
    def form(self) -> tuple[tuple[int, int] | None, ...]:
        """What of it kernels are told other than by address."""
        found = [self.pairs(layer, names) for layer, names in product(range(len(self.layers)), PRODUCTS)]
        return tuple(None if one is None else (one.present, one.rank) for one in found)

    def on_device(self, one: StackedLowRank) -> Pair:
        layout = one.layout
        if id(layout) not in self._slots:
            self._slots[id(layout)] = slots_of(layout)
        greatest = max(rank for rank, _ in layout.parts)
        return Pair(one.a.astype(mx.bfloat16), one.b.astype(mx.bfloat16), self._slots[id(layout)], greatest)


def slots_of(layout: RankLayout) -> mx.array:
    """In the device's own memory, where what was computed there lies."""
    slots = np.zeros((len(layout.parts) + 1, 4), np.int32)  # a last one that is nobody's: 8 bytes would be the host's
    ranks = np.array([rank for rank, _ in layout.parts], np.int32)
    slots[:-1, 0], slots[:-1, 1] = np.cumsum(ranks) - ranks, ranks
    slots[:-1, 2] = np.array([scale for _, scale in layout.parts], np.float32).view(np.int32)
    return mx.array(slots) + 0


def blank(operands: Operands, rank: int) -> Adapted:
    """Of an adapter that is nobody's, for a product's modules."""
    slots, left = mx.zeros((2, 4), mx.int32), mx.zeros((rank, operands.inner), mx.bfloat16)
    modules = tuple(Pair(left, mx.zeros((rank, w.shape[0]), mx.bfloat16), slots, rank) for w in operands.weights)
    return Adapted(Pairs(modules, rank, mx.zeros(16, mx.int64)), mx.zeros((1, LINE), mx.int32))
