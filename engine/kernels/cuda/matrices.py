"""Matrices: quantized weights that take the same rows, as one product; and which kernel does it for so many rows.

Up to 8 rows the weights are read once; beyond, rows go in tiles; and where a bf16 copy is kept, large batches go to
cuBLAS. MLX would read the weights once a row up to 7 rows, and stays far below the memory's speed after.
"""

from collections.abc import Sequence

import mlx.core as mx

from engine.kernels.cuda import few, low_rank, tiles
from engine.kernels.cuda.adapters import Adapted
from engine.kernels.cuda.layout import ROW_BY_ROW, Layout
from engine.kernels.cuda.operands import Operands
from engine.kernels.cuda.source import Launcher
from engine.quantized import QuantizedTensor, dequantize
from engine.weights import Linear

NEVER = 1 << 30
MOST_ROWS_AT_ONCE = max(tiles.TILES)  # whose adapters cost no launch
MOST_NORMED = 8192  # columns of rows that are normed on the way: eight of them fit in shared memory


def can_multiply(linears: Sequence[Linear], norm: mx.array | None = None) -> bool:
    """Whether these weights have a form that the kernels take, all the same one."""
    weights = [linear.weight for linear in linears]
    formats = {(w.bits, w.group_size, w.mode, w.logical_shape[1]) for w in weights if isinstance(w, QuantizedTensor)}
    if len(formats) != 1 or not all(isinstance(w, QuantizedTensor) for w in weights):
        return False
    bits, group, mode, inner = formats.pop()
    is_known = mode == "affine" and bits in (4, 8) and group in (32, 64, 128)
    fits = inner % 512 == 0 and (norm is None or inner <= MOST_NORMED)
    return is_known and fits and all(w.shape[0] % 128 == 0 for w in weights)


class Matrices:
    """A product; from `dense_from` rows on it is cuBLAS'."""

    def __init__(self, operands: Operands, dense_from: int = NEVER) -> None:
        self.operands = operands
        self.dense_from = dense_from
        self.dense: mx.array | None = None

    def expand(self) -> None:
        """Keep a bf16 copy for large batches."""
        self.dense = self.widened()
        mx.eval(self.dense)

    def layout(self, rows: int) -> Layout:
        """How so many rows are to be laid out for this product."""
        is_tiled = few.MOST_ROWS < rows < self.dense_from
        return tiles.layout_of(self.operands, rows) if is_tiled else ROW_BY_ROW

    def __call__(
        self,
        x: mx.array,
        added: mx.array | None = None,
        at: mx.array | None = None,
        *,
        is_laid_out: bool = False,
        give: Layout = ROW_BY_ROW,
        adapted: Adapted | None = None,
    ) -> mx.array:
        """The product of (T, in), or of its rows `at`, and what `adapted` makes of these; `added` is (T, out), the
        residual for one.

        `is_laid_out`: x lies as `layout()` says, and `added` tells the number of rows; `give`: how the result shall
        lie, if gated.
        """
        like = at if at is not None else added if is_laid_out and added is not None else x
        rows = like.shape[0]
        if adapted is not None and rows > MOST_ROWS_AT_ONCE:
            layout = self.layout(rows) if is_laid_out else ROW_BY_ROW
            added, adapted = low_rank.add_apart(self.operands, adapted, x, rows, added, layout), None
        if rows <= few.MOST_ROWS:
            return few.multiply_few(self.operands, x, rows, added, at, adapted)
        if rows < self.dense_from:
            x = x if is_laid_out else tiles.arrange(self.operands, x, rows, at)
            return tiles.multiply_tiles(self.operands, x, rows, added, give, adapted)
        return self.multiply_dense(x if at is None else x[at], added)

    def multiply_dense(self, x: mx.array, added: mx.array | None) -> mx.array:
        operands = self.operands
        if operands.norm is not None:
            x = mx.fast.rms_norm(x, operands.norm, operands.eps)
        _, extra = operands.added(added)
        dense = self.widened() if self.dense is None else self.dense
        y = x @ dense.T if extra is None else mx.addmm(extra, x, dense.T)
        return self.gate(y) if operands.is_gated else y.astype(operands.dtype)

    def widened(self) -> mx.array:
        return mx.concatenate([dequantize(w).astype(mx.bfloat16) for w in self.operands.weights])

    def gate(self, y: mx.array) -> mx.array:
        width, launchers = self.operands.width, self.operands.launchers
        launcher = launchers.get(("gate", width))
        if launcher is None:
            launcher = launchers["gate", width] = Launcher("gate", [], ["both"], ["out"], {"WIDTH": width}, threads=256)
        rows = y.shape[0]
        return launcher([y], (-(-rows * width // 2048), 1, 1), [(rows, width)], [mx.bfloat16], rows=rows)[0]
