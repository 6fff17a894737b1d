"""Matrices: quantized weights that take the same rows, as one product; and how that product is done for so many rows.

Up to 8 rows the weights are read once, the rows being the narrow side of a tensor core's product; beyond, rows go in
tiles of 16 to 128, and weights are widened in registers; and where a bf16 copy is kept, large batches go to cuBLAS.
MLX would read the weights once a row up to 7 rows, and stays far below the memory's speed after.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx

from engine.kernels.cuda.source import Constants, Launcher, wgmma
from engine.quantized import QuantizedTensor, dequantize
from engine.weights import Linear

FEW = 8  # rows of the product that reads weights once
MULTIPROCESSORS = 132
SHARED_BYTES = 227 * 1024  # of a multiprocessor, for all its blocks; each takes 1024 more than it asks for
TILES = {16: (1, 2), 32: (1, 2), 64: (1, 2), 128: (2, 1)}  # rows: warpgroups of a block, blocks of a multiprocessor
AHEAD_BYTES = 12 << 20  # of the next kernel's weights, brought to L2


def can_multiply(linears: Sequence[Linear]) -> bool:
    """Whether these weights have a form that the kernels take, all the same one."""
    weights = [linear.weight for linear in linears]
    formats = {(w.bits, w.group_size, w.mode, w.logical_shape[1]) for w in weights if isinstance(w, QuantizedTensor)}
    if len(formats) != 1 or not all(isinstance(w, QuantizedTensor) for w in weights):
        return False
    bits, group, mode, inner = formats.pop()
    is_known = mode == "affine" and bits in (4, 8) and group in (32, 64, 128)
    return is_known and inner % 512 == 0 and all(w.shape[0] % 128 == 0 for w in weights)


@dataclass(frozen=True, slots=True)
class Layout:
    """How activations lie: row by row, or as the tiled product of 4- or 8-bit weights reads them."""

    order: int  # 0, 4 or 8
    tokens: int  # rows of a tile

    def shape(self, rows: int, width: int) -> tuple[int, int]:
        return -(-rows // self.tokens) * self.tokens, width

    @property
    def constants(self) -> Constants:
        return {"ORDER": self.order, "TOKENS": self.tokens}


ROW_BY_ROW = Layout(0, 1)


def tile_of(rows: int) -> int:
    return next((tile for tile in TILES if rows <= tile), max(TILES))


@dataclass(eq=False)
class Matrices:
    """One to three matrices (out, in) side by side; `is_gated`: gate and up, whose result is silu(gate) * up."""

    weights: tuple[QuantizedTensor, ...]
    launchers: dict[object, Launcher]  # shared by all layers
    bias: mx.array | None = None
    norm: mx.array | None = None  # rows are normed with this first
    eps: float = 1e-6
    is_gated: bool = False
    is_float: bool = False  # the result is float32
    dense_from: int = 1 << 30  # rows
    dense: mx.array | None = None
    _splits: dict[int, int] = field(default_factory=dict)

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
        return (*self.constants.values(), self.norm is not None, self.eps)

    @cached_property
    def inner(self) -> int:
        return self.weights[0].logical_shape[1]

    @cached_property
    def width(self) -> int:
        return sum(w.shape[0] for w in self.weights) // (2 if self.is_gated else 1)

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

    def expand(self) -> None:
        """Keep a bf16 copy for large batches."""
        self.dense = mx.concatenate([dequantize(w).astype(mx.bfloat16) for w in self.weights])
        mx.eval(self.dense)

    def layout(self, rows: int) -> Layout:
        """How so many rows are to be laid out for this product."""
        return Layout(self.weights[0].bits, tile_of(rows)) if FEW < rows < self.dense_from else ROW_BY_ROW

    def __call__(
        self,
        x: mx.array,
        added: mx.array | None = None,
        at: mx.array | None = None,
        *,
        is_laid_out: bool = False,
        give: Layout = ROW_BY_ROW,
        after: QuantizedTensor | None = None,
    ) -> mx.array:
        """The product of (T, in), or of its rows `at`; `added` is (T, out), the residual for one.

        `is_laid_out`: x lies as `layout()` says, and `added` tells the number of rows; `give`: how the result shall
        lie, if gated; `after`: weights that are needed next.
        """
        like = at if at is not None else added if is_laid_out and added is not None else x
        rows = like.shape[0]
        if rows <= FEW:
            return self.few(x, rows, added, at, after)
        if rows < self.dense_from:
            return self.many(x if is_laid_out else self.arrange(x, at), like, added, give)
        if at is not None:
            x = x[at]
        if self.norm is not None:
            x = mx.fast.rms_norm(x, self.norm, self.eps)
        return self.large(x, added)

    def added(self, added: mx.array | None) -> tuple[int, mx.array | None]:
        """What the kernels add: a matrix (1), a row (2) or nothing (0)."""
        if added is not None:
            return 1, added if self.bias is None else added + self.bias
        return (0, None) if self.bias is None else (2, self.bias)

    def absent(self, names: Sequence[str]) -> str:
        """Declarations of the inputs that a kernel does without."""
        aliases = [f"#define {kind}{i} {kind}0\n" for i in range(len(self.weights), 3) for kind in "wsb"]
        optional = ("norm", "added", "after")
        missing = [f"const __nv_bfloat16* {name} = 0;\n" for name in optional if name not in names]
        gathered = "" if "at" in names else "const int *at = 0, *at_shape = 0;\n"
        return "".join(aliases + missing) + gathered

    # Up to 8 rows

    def few(
        self, x: mx.array, rows: int, added: mx.array | None, at: mx.array | None, after: QuantizedTensor | None
    ) -> mx.array:
        bucket = 1 << (rows - 1).bit_length()
        kind, extra = self.added(added)
        ahead = 0 if after is None else min(AHEAD_BYTES, after.nbytes)
        key = (self.form, "few", bucket, kind, at is not None, ahead)
        launcher = self.launchers.get(key)
        if launcher is None:
            launcher = self.launchers[key] = self.build_few(bucket, kind, at is not None, ahead)
        inputs = [x, *self.arrays]
        inputs += [array for array in (self.norm, extra, at, after) if array is not None]
        tiles = self.width // 16
        waves = -(-tiles // (MULTIPROCESSORS * self.residency(launcher.threads, self.few_bytes(bucket))))
        grid = (-(-tiles // waves), 1, 1)
        return launcher(inputs, grid, [(rows, self.width)], [self.dtype])[0]

    def warps(self) -> int:
        supers = self.inner * self.weights[0].bits // 2048
        return max(count for count in range(1, 9) if supers % count == 0)

    def few_bytes(self, bucket: int) -> int:
        staged = bucket * self.inner * 2 if self.is_staged(bucket) else 0
        sums = self.inner * self.weights[0].bits // 16 if self.is_grouped(bucket) else 0
        return staged + sums + self.warps() * (512 * (2 if self.is_gated else 1) + 32)

    def is_staged(self, bucket: int) -> bool:
        """Whether rows go to shared memory: to be normed, or because they fit beside another block's."""
        return self.norm is not None or self.is_grouped(bucket)

    def is_grouped(self, bucket: int) -> bool:
        """Whether rows and groups together are so few that scales meet sums of groups; as the kernel decides it."""
        block = 512 // self.weights[0].bits
        columns = 8 // max(1, block // self.weights[0].group_size)
        return bucket <= columns and (self.norm is not None or bucket * self.inner * 2 <= 100_000)

    def residency(self, threads: int, shared: int) -> int:
        """Blocks of a multiprocessor at a time."""
        return max(1, min(SHARED_BYTES // (shared + 1024), 65536 // (threads * 128)))

    def build_few(self, bucket: int, kind: int, is_gathered: bool, ahead: int) -> Launcher:
        names = ["x", *self.names]
        optional = {"norm": self.norm is not None, "added": bool(kind), "at": is_gathered, "after": bool(ahead)}
        names += [name for name, is_there in optional.items() if is_there]
        return Launcher(
            "product_few",
            ["weights"],
            names,
            ["out"],
            {
                **self.constants,
                "ROWS": bucket,
                "WARPS": self.warps(),
                "NORM": self.norm is not None,
                "STAGED": self.is_staged(bucket),
                "GROUPED": self.is_grouped(bucket),
                "ADDED": kind,
                "GATHERED": is_gathered,
                "AFTER": ahead,
            },
            threads=self.warps() * 32,
            blocks=self.residency(self.warps() * 32, self.few_bytes(bucket)),
            shared_memory=self.few_bytes(bucket),
            defines=f"#define EPS {self.eps!r}f\n",
            prelude=self.absent(names),
        )

    # Tiles of rows

    def arrange(self, x: mx.array, at: mx.array | None) -> mx.array:
        """Rows, or some of them, normed and laid out for the tiled product."""
        rows = x.shape[0] if at is None else at.size
        layout = self.layout(rows)
        key = (self.form, "arrange", layout, at is not None)
        launcher = self.launchers.get(key)
        if launcher is None:
            names = ["x", *(["norm"] if self.norm is not None else []), *(["at"] if at is not None else [])]
            launcher = self.launchers[key] = Launcher(
                "arrange",
                [],
                names,
                ["out"],
                {"K": self.inner, "NORM": self.norm is not None, "GATHERED": at is not None, **layout.constants},
                threads=256,
                defines=f"#define EPS {self.eps!r}f\n",
                prelude=self.absent(names),
            )
        inputs = [array for array in (x, self.norm, at) if array is not None]
        return launcher(inputs, (rows, 1, 1), [layout.shape(rows, self.inner)], [mx.bfloat16])[0]

    def many(self, x: mx.array, like: mx.array, added: mx.array | None, give: Layout) -> mx.array:
        rows = like.shape[0]
        tile = tile_of(rows)
        groups, _ = TILES[tile]
        kind, extra = self.added(added)
        blocks = -(-rows // tile) * -(-self.width // ((64 if self.is_gated else 128) * groups))
        splits = self.splits(rows, blocks)
        is_parted = splits > 1
        key = (self.form, "many", tile, 0 if is_parted else kind, is_parted, give)
        launcher = self.launchers.get(key)
        if launcher is None:
            launcher = self.launchers[key] = self.build_many(tile, 0 if is_parted else kind, is_parted, give)
        inputs = [x, like, *self.arrays]
        if extra is not None and not is_parted:
            inputs.append(extra)
        if not is_parted:
            shape = give.shape(rows, self.width) if self.is_gated else (rows, self.width)
            return launcher(inputs, (blocks, 1, 1), [shape], [self.dtype])[0]
        width = self.width * (2 if self.is_gated else 1)
        parts = launcher(inputs, (blocks, splits, 1), [(splits, rows, width)], [mx.float32])[0]
        return self.combine(parts, kind, extra, give)

    def splits(self, rows: int, blocks: int) -> int:
        """Into how many parts the inner dimension goes: what full multiprocessors gain, summing the parts costs."""
        if self.is_float:
            return 1
        found = self._splits.get(rows)
        if found is not None:
            return found
        width = self.width * (2 if self.is_gated else 1)
        weights = self.inner * width
        base = max(2 * rows * weights / 5e14, weights * 0.56 / 3.5e12)

        def seconds(splits: int) -> float:
            waves = -(-blocks * splits // MULTIPROCESSORS)
            fullness = blocks * splits / (waves * MULTIPROCESSORS)
            return base / fullness + (2e-6 + splits * rows * width * 8 / 3e12 if splits > 1 else 0)

        best = self._splits[rows] = min(range(1, 1 + min(8, self.inner // 512)), key=seconds)
        return best

    def build_many(self, tile: int, kind: int, is_parted: bool, give: Layout) -> Launcher:
        names = ["x", "like", *self.names, *(["added"] if kind else [])]
        groups, blocks = TILES[tile]
        first = self.weights[0]
        parts = 2 * groups * (128 * 256 + 256 * (16 // first.bits) * 256 // first.group_size)
        stages = min(4, (SHARED_BYTES // blocks - 2304 - parts) // (tile * 256))
        return Launcher(
            "product_many",
            ["weights"],
            names,
            ["out"],
            {
                **self.constants,
                "TOKENS": tile,
                "GROUPS": groups,
                "STAGES": stages,
                "ADDED": kind,
                "PARTS": is_parted,
                "ORDER": give.order,
            },
            threads=128 * groups,
            blocks=blocks,
            shared_memory=stages * tile * 256 + parts + 1024,
            prelude=self.absent(names),
            defines=wgmma(tile),
        )

    def combine(self, parts: mx.array, kind: int, extra: mx.array | None, give: Layout) -> mx.array:
        key = ("combine", kind, self.is_gated, give)
        launcher = self.launchers.get(key)
        if launcher is None:
            names = ["parts", *(["added"] if kind else [])]
            constants: Constants = {"ADDED": kind, "GATED": self.is_gated, **give.constants}
            launcher = self.launchers[key] = Launcher(
                "combine", [], names, ["out"], constants, threads=256, prelude=self.absent(names)
            )
        rows = parts.shape[1]
        inputs = [parts] if extra is None else [parts, extra]
        shape = give.shape(rows, self.width)
        return launcher(inputs, (-(-rows * self.width // 1024), 1, 1), [shape], [mx.bfloat16])[0]

    # Large batches

    def large(self, x: mx.array, added: mx.array | None) -> mx.array:
        _, extra = self.added(added)
        dense = mx.concatenate([dequantize(w) for w in self.weights]) if self.dense is None else self.dense
        y = x @ dense.T if extra is None else mx.addmm(extra, x, dense.T)
        return self.gate(y) if self.is_gated else y.astype(self.dtype)

    def gate(self, y: mx.array) -> mx.array:
        key = (self.form, "gate")
        launcher = self.launchers.get(key)
        if launcher is None:
            launcher = self.launchers[key] = Launcher("gate", [], ["both"], ["out"], {"WIDTH": self.width}, threads=256)
        rows = y.shape[0]
        return launcher([y], (-(-rows * self.width // 2048), 1, 1), [(rows, self.width)], [mx.bfloat16])[0]
