"""Adapter: a low-rank change to some linear modules of a model. Applied at run time, never fused."""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class LowRank:
    """One module's change: `y + scale * (x @ a) @ b`, the scale exactly as it multiplies."""

    a: mx.array  # (in, rank)
    b: mx.array  # (rank, out)
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[1]


@dataclass(frozen=True, slots=True)
class Adapter:
    """The changed modules by (layer, module name); `version` is a fingerprint of all of them."""

    modules: Mapping[tuple[int, str], LowRank]
    version: str

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max((module.rank for module in self.modules.values()), default=0)

    @property
    def num_bytes(self) -> int:
        return sum(module.a.nbytes + module.b.nbytes for module in self.modules.values())
