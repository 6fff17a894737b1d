"""Adapters in a batch: every row its own adapter, or none, in the same three products for all.

The matrices of all attached adapters stand side by side along the rank: `a` is (R, in) and `b` (R, out), where R is
the sum of the ranks. A row multiplies with all of them and a mask keeps what is its own, so ranks may differ by
adapter and by module, nothing is padded, and nothing is copied for a row. Others pad every adapter to the largest
rank and gather a copy of both matrices for each token, which is slow in prefill.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike

from engine.adapter import Adapter, LowRank
from engine.weights import LINEAR_MODULES, Layer, Linear

Layouts = dict[tuple[tuple[int, float], ...], "RankLayout"]


@dataclass(frozen=True, slots=True)
class RankLayout:
    """Whose the R rank rows of a stack are. Modules with equal ranks and scales share one layout, and its mask."""

    parts: tuple[tuple[int, float], ...]  # rank and scale of each slot
    owner: mx.array  # (R,) int32: index of the slot
    scale: mx.array  # (R,) float32
    starts: mx.array  # (slots + 1,) int32: slot i owns rank rows [starts[i], starts[i + 1])

    def rows_of(self, slot: int) -> slice:
        """The rank rows of one slot."""
        start = sum(rank for rank, _ in self.parts[:slot])
        return slice(start, start + self.parts[slot][0])


@dataclass(slots=True)
class StackedLowRank:
    """One linear module's low-rank pairs of all adapters."""

    a: mx.array  # (R, in)
    b: mx.array  # (R, out)
    layout: RankLayout


@dataclass(slots=True)
class AdapterStack:
    """All attached adapters, by layer and module; a module that no adapter changes is absent.

    A slot is the n-th place in every module. `native` is what a column made of the stack, as it stands.
    """

    layers: tuple[Mapping[str, StackedLowRank], ...]
    native: "Native | None" = None

    @property
    def num_slots(self) -> int:
        return max((len(stacked.layout.parts) for _, stacked in self.modules()), default=0)

    def modules(self) -> Iterator[tuple[tuple[int, str], StackedLowRank]]:
        """All modules by (layer, name), as an adapter has them."""
        for index, layer in enumerate(self.layers):
            for name, stacked in layer.items():
                yield (index, name), stacked

    def take(self, slot: int) -> Mapping[tuple[int, str], LowRank]:
        """What lies in a slot, without a copy."""
        found = {}
        for place, stacked in self.modules():
            if stacked.layout.parts[slot][0]:
                rows = stacked.layout.rows_of(slot)
                found[place] = LowRank(stacked.a[rows].T, stacked.b[rows], stacked.layout.parts[slot][1])
        return found

    def fits(self, slot: int, adapter: Adapter) -> bool:
        """Whether there is such a slot, and it has the adapter's ranks and precision in every module."""
        if slot >= self.num_slots:
            return False
        own = {
            place: (rank, stacked.a.dtype, stacked.b.dtype)
            for place, stacked in self.modules()
            if (rank := stacked.layout.parts[slot][0])
        }
        return own == {place: (pair.rank, pair.a.dtype, pair.b.dtype) for place, pair in adapter.modules.items()}

    def replace(self, slot: int, adapter: Adapter) -> None:
        """Write an adapter over what lies in a slot that it fits. Others' rows stay where they are, uncopied."""
        mx.synchronize()  # while a step reads an array, or somebody holds it, a write has to copy the whole of it
        again = None if self.native is None else self.native.let_go()
        self.native = None
        layouts: Layouts = {}
        for place, stacked in self.modules():
            parts, pair = stacked.layout.parts, adapter.modules.get(place)
            if pair is not None:
                rows = stacked.layout.rows_of(slot)
                stacked.a[rows], stacked.b[rows] = pair.a.T, pair.b
                parts = (*parts[:slot], (pair.rank, pair.scale), *parts[slot + 1 :])
            stacked.layout = layout_of(parts, layouts)
        mx.eval(self.arrays())
        if again is not None:
            self.native = again(self, slot)

    def arrays(self) -> list[mx.array]:
        return [array for _, stacked in self.modules() for array in (stacked.a, stacked.b)]


class Native(Protocol):
    """A stack in a column's own form."""

    def let_go(self) -> Callable[[AdapterStack, int], "Native"] | None:
        """Hold no array of the stack any more. What makes a form again once a slot was written, if not all anew."""


class LoraRows:
    """A stack together with each row's choice, for one batch."""

    def __init__(self, stack: AdapterStack, adapter_of: ArrayLike) -> None:
        self.stack = stack
        self.numbers = np.asarray(adapter_of, np.int32)  # (T,) -1 for none
        self._masks: dict[int, mx.array] = {}

    @cached_property
    def adapter_of(self) -> mx.array:
        return mx.array(self.numbers)

    def mask(self, layout: RankLayout) -> mx.array:
        """(T, R): an adapter's scale where a rank row belongs to the row's adapter, else 0."""
        found = self._masks.get(id(layout))
        if found is None:
            is_own = self.adapter_of[:, None] == layout.owner[None, :]
            found = self._masks[id(layout)] = mx.where(is_own, layout.scale, mx.zeros((), mx.float32))
        return found


def project(name: str, layer: Layer, index: int, x: mx.array, lora: LoraRows | None) -> mx.array:
    """One linear module of a layer with the rows' adapters on top."""
    linear: Linear = getattr(layer, name)
    y = linear(x)
    stacked = None if lora is None else lora.stack.layers[index].get(name)
    if lora is None or stacked is None:
        return y
    low = (x @ stacked.a.T) * lora.mask(stacked.layout)  # (T, R)
    return y + (low @ stacked.b).astype(y.dtype)


def stack_adapters(adapters: Sequence[Adapter], num_layers: int) -> AdapterStack:
    """Lay the adapters side by side; the n-th is known to rows as n."""
    layouts: Layouts = {}
    layers: list[dict[str, StackedLowRank]] = []
    for index in range(num_layers):
        stacked = {}
        for name in LINEAR_MODULES:
            pairs = [adapter.modules.get((index, name)) for adapter in adapters]
            if any(pairs):
                stacked[name] = stack_module(pairs, layouts)
        layers.append(stacked)
    stack = AdapterStack(tuple(layers))
    mx.eval(stack.arrays())
    return stack


def stack_module(pairs: Sequence[LowRank | None], layouts: Layouts) -> StackedLowRank:
    parts = tuple((0, 0.0) if pair is None else (pair.rank, pair.scale) for pair in pairs)
    present = [pair for pair in pairs if pair is not None]
    a = mx.contiguous(mx.concatenate([pair.a.T for pair in present]))
    b = mx.contiguous(mx.concatenate([pair.b for pair in present]))
    return StackedLowRank(a, b, layout_of(parts, layouts))


def layout_of(parts: tuple[tuple[int, float], ...], layouts: Layouts) -> RankLayout:
    """The layout of these ranks and scales, the same one for all modules that have them."""
    if parts not in layouts:
        owner = [slot for slot, (rank, _) in enumerate(parts) for _ in range(rank)]
        scale = [scale for rank, scale in parts for _ in range(rank)]
        starts = [0, *accumulate(rank for rank, _ in parts)]
        layouts[parts] = RankLayout(
            parts, mx.array(owner, mx.int32), mx.array(scale, mx.float32), mx.array(starts, mx.int32)
        )
    return layouts[parts]
