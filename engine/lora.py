"""Adapters in a batch: every row its own adapter, or none, in the same three products for all.

The matrices of all attached adapters stand side by side along the rank: `a` is (R, in) and `b` (R, out), where R is
the sum of the ranks. A row multiplies with all of them and a mask keeps what is its own, so ranks may differ by
adapter and by module, nothing is padded, and nothing is copied for a row. Others pad every adapter to the largest
rank and gather a copy of both matrices for each token, which is slow in prefill.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from engine.adapter import Adapter, LowRank
from engine.weights import LINEAR_MODULES, Layer, Linear


@dataclass(frozen=True, slots=True)
class RankLayout:
    """Whose the R rank rows of a stack are. Modules with equal ranks and scales share one layout, and its mask."""

    owner: mx.array  # (R,) int32: index of the adapter
    scale: mx.array  # (R,) float32
    starts: mx.array  # (adapters + 1,) int32: adapter i owns rank rows [starts[i], starts[i + 1])


@dataclass(frozen=True, slots=True)
class StackedLowRank:
    """One linear module's low-rank pairs of all adapters."""

    a: mx.array  # (R, in)
    b: mx.array  # (R, out)
    layout: RankLayout


@dataclass(frozen=True, slots=True)
class AdapterStack:
    """All attached adapters, by layer and module; a module that no adapter changes is absent."""

    layers: tuple[Mapping[str, StackedLowRank], ...]


class LoraRows:
    """A stack together with each row's choice, for one batch."""

    def __init__(self, stack: AdapterStack, adapter_of: mx.array) -> None:
        self.stack = stack
        self.adapter_of = adapter_of  # (T,) int32, -1 for none
        self._masks: dict[int, mx.array] = {}

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


def stack_adapters(adapters: Sequence[Adapter], num_layers: int, dtype: mx.Dtype | None = None) -> AdapterStack:
    """Lay the adapters side by side; the n-th is known to rows as n."""
    layouts: dict[tuple[tuple[int, float], ...], RankLayout] = {}
    layers: list[dict[str, StackedLowRank]] = []
    for index in range(num_layers):
        stacked = {}
        for name in LINEAR_MODULES:
            pairs = [adapter.modules.get((index, name)) for adapter in adapters]
            if any(pairs):
                stacked[name] = stack_module(pairs, layouts, dtype)
        layers.append(stacked)
    stack = AdapterStack(tuple(layers))
    mx.eval([part for layer in layers for module in layer.values() for part in (module.a, module.b)])
    return stack


def stack_module(
    pairs: Sequence[LowRank | None],
    layouts: dict[tuple[tuple[int, float], ...], RankLayout],
    dtype: mx.Dtype | None,
) -> StackedLowRank:
    shape = tuple((0, 0.0) if pair is None else (pair.rank, pair.scale) for pair in pairs)
    if shape not in layouts:
        layouts[shape] = rank_layout(shape)
    present = [pair for pair in pairs if pair is not None]
    a = mx.contiguous(mx.concatenate([pair.a.T for pair in present]))
    b = mx.contiguous(mx.concatenate([pair.b for pair in present]))
    return StackedLowRank(
        a if dtype is None else a.astype(dtype), b if dtype is None else b.astype(dtype), layouts[shape]
    )


def rank_layout(shape: Sequence[tuple[int, float]]) -> RankLayout:
    owner = [index for index, (rank, _) in enumerate(shape) for _ in range(rank)]
    scale = [scale for rank, scale in shape for _ in range(rank)]
    starts = [0]
    for rank, _ in shape:
        starts.append(starts[-1] + rank)
    return RankLayout(mx.array(owner, mx.int32), mx.array(scale, mx.float32), mx.array(starts, mx.int32))
