"""Operands: quantized weights that take the same rows, as one product, with what goes before and after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from engine.kernels.cuda.source import Constants, Launcher
from engine.quantized import QuantizedTensor

MULTIPROCESSORS = 132
SHARED_BYTES = 227 * 1024  # of a multiprocessor, for all its blocks; each takes 1024 more than it asks for


@dataclass(eq=False)
class Operands:
    """One to three matrices (out, in) side by side; `is_gated`: gate and up, whose result is silu(gate) * up."""

    weights: tuple[QuantizedTensor, ...]
    launchers: dict[object, Launcher]  # shared by all layers
    bias: mx.array | None = None
    norm: mx.array | None = None  # rows are normed with this first
    eps: float = 1e-6
    is_gated: bool = False
    is_float: bool = False  # the result is float32

    @cached_property
    def constants(self) -> Constants:
        first, widths = self.weights[0], [w.shape[0] for w in self.weights] + [0, 0]
        return {
            "BITS": first.bits,
            "GROUP": first.group_size,
            "K": self.inner,
            "N0": widths[0],
            "N1": widths[1],
            "N2": widths[2],
            "GATED": self.is_gated,
            "FLOAT_OUT": self.is_float,
        }

    @cached_property
    def form(self) -> tuple[object, ...]:
        """What tells the kernels of one product from another's."""
        return (*self.constants.values(), self.norm is not None, self.eps)

    @cached_property
    def inner(self) -> int:
        return self.weights[0].logical_shape[1]

    @cached_property
    def sum_width(self) -> int:
        """Columns before gate and up are one."""
        return sum(w.shape[0] for w in self.weights)

    @cached_property
    def width(self) -> int:
        return self.sum_width // (2 if self.is_gated else 1)

    @cached_property
    def arrays(self) -> list[mx.array]:
        parts: list[mx.array] = []
        for w in self.weights:
            assert w.biases is not None
            parts += [w, w.scales, w.biases]
        return parts

    @cached_property
    def names(self) -> list[str]:
        return [f"{kind}{index}" for index in range(len(self.weights)) for kind in "wsb"]

    @property
    def dtype(self) -> mx.Dtype:
        return mx.float32 if self.is_float else mx.bfloat16

    def added(self, added: mx.array | None) -> tuple[int, mx.array | None]:
        """What the kernels add: a matrix (1), a row (2) or nothing (0)."""
        if added is not None:
            return 1, added if self.bias is None else added + self.bias
        return (0, None) if self.bias is None else (2, self.bias)

    def absent(self, names: Sequence[str]) -> str:
        """Declarations of the inputs that a kernel does without."""
        aliases = [f"#define {kind}{i} {kind}0\n" for i in range(len(self.weights), 3) for kind in "wsb"]
        return "".join(aliases) + without(names, "norm", "added", "at")


def without(names: Sequence[str], *optional: str) -> str:
    """Declarations of optional inputs that are not among the names; nobody reads them."""
    kinds = {"at": "int"}
    return "".join(f"const {kinds.get(name, 'bf16')}* {name} = 0;\n" for name in optional if name not in names)
