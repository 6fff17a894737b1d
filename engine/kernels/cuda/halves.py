"""Halves: the products of one layer as the kernels take them, attention's and those of the feed-forward half."""

from dataclasses import dataclass

import mlx.core as mx

from engine.kernels.cuda.adapters import DOWN, GATE_UP, OUTPUT, QKV, Adapted, RowsOnDevice
from engine.kernels.cuda.matrices import Matrices, can_multiply
from engine.kernels.cuda.operands import Operands
from engine.kernels.cuda.source import Launcher
from engine.quantized import QuantizedTensor
from engine.weights import Layer, Linear


@dataclass(frozen=True, slots=True)
class Halves:
    """One layer's; None where the weights have another form."""

    layer: Layer  # kept, so that its id stays its own
    index: int
    qkv: Matrices | None
    output: Matrices | None
    gate_up: Matrices | None
    down: Matrices | None
    norms: list[mx.array]  # of queries and keys

    @property
    def products(self) -> list[Matrices]:
        return [part for part in (self.qkv, self.output, self.gate_up, self.down) if part is not None]

    def adapted(self, adapters: RowsOnDevice | None, names: tuple[str, ...]) -> Adapted | None:
        return None if adapters is None else adapters.of(self.index, names)

    def feed_forward(self, x: mx.array, adapters: RowsOnDevice | None) -> mx.array:
        """x + down(silu(gate(norm(x))) * up(norm(x)))."""
        assert self.gate_up and self.down
        inner = self.gate_up(x, give=self.down.layout(x.shape[0]), adapted=self.adapted(adapters, GATE_UP))
        return self.down(inner, x, is_laid_out=True, adapted=self.adapted(adapters, DOWN))


def halves_of(layer: Layer, index: int, eps: float, launchers: dict[object, Launcher], dense_from: int) -> Halves:
    """`launchers` are shared by all layers; bf16 copies do the product of `dense_from` rows and more."""

    def joined(names: tuple[str, ...], norm: mx.array | None, is_gated: bool = False) -> Matrices | None:
        linears: list[Linear] = [getattr(layer, name) for name in names]
        biases = [linear.bias for linear in linears if linear.bias is not None]
        if not can_multiply(linears, norm) or (biases and len(biases) != len(linears)):
            return None
        weights = tuple(linear.weight for linear in linears if isinstance(linear.weight, QuantizedTensor))
        bias = mx.concatenate(biases) if biases else None
        return Matrices(Operands(weights, launchers, bias, norm, eps, is_gated), dense_from)

    norms = [] if layer.q_norm is None or layer.k_norm is None else [layer.q_norm, layer.k_norm]
    return Halves(
        layer,
        index,
        joined(QKV, layer.input_layernorm),
        joined(OUTPUT, None),
        joined(GATE_UP, layer.post_attention_layernorm, is_gated=True),
        joined(DOWN, None),
        norms,
    )
