"""Embedding: rows of a quantized table, in one launch."""

import mlx.core as mx

from engine.kernels.cuda.matrices import can_multiply
from engine.kernels.cuda.operands import without
from engine.kernels.cuda.source import Launcher
from engine.quantized import QuantizedTensor
from engine.weights import Linear


def can_look_up(table: mx.array) -> bool:
    return isinstance(table, QuantizedTensor) and table.biases is not None and can_multiply([Linear(table)])


def look_up(
    table: mx.array, tokens: mx.array, launchers: dict[object, Launcher], at: mx.array | None = None
) -> mx.array:
    """The rows of the tokens, or of those that stand `at` some places."""
    assert isinstance(table, QuantizedTensor) and table.biases is not None
    inner, rows = table.logical_shape[1], tokens.size if at is None else at.size
    launcher = launchers.get(("embed", at is not None))
    if launcher is None:
        constants = {"BITS": table.bits, "GROUP": table.group_size, "K": inner, "GATHERED": at is not None}
        names = ["tokens", "w0", "s0", "b0", *([] if at is None else ["at"])]
        launcher = Launcher("embed", [], names, ["out"], constants, threads=128, prelude=without(names, "at"))
        launchers["embed", at is not None] = launcher
    inputs = [tokens, table, table.scales, table.biases, *([] if at is None else [at])]
    return launcher(inputs, (rows, 1, 1), [(rows, inner)], [mx.bfloat16])[0]
