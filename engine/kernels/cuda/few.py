"""Few: the product for up to 8 rows, the narrow side of tensor cores' products, so that weights are read once."""

import mlx.core as mx

from engine.kernels.cuda.adapters import Adapted
from engine.kernels.cuda.layout import ROW_BY_ROW
from engine.kernels.cuda.low_rank import NAMES, Shrinking
from engine.kernels.cuda.operands import MULTIPROCESSORS, SHARED_BYTES, Operands
from engine.kernels.cuda.source import Launcher

MOST_ROWS = 8
REGISTERS = 84  # of a thread, as the compiler is told by the number of blocks


def multiply_few(
    operands: Operands,
    x: mx.array,
    rows: int,
    added: mx.array | None,
    at: mx.array | None = None,
    adapted: Adapted | None = None,
) -> mx.array:
    """Rows of x, or its rows `at`."""
    at_most = 1 << (rows - 1).bit_length()
    if adapted is not None and rows > 1:
        at_most = MOST_ROWS  # one kernel for all of these: fewer to compile
    plan = Plan(operands, at_most, 0 if adapted is None else adapted.pairs.rank)
    kind, extra = operands.added(added)
    key = (operands.form, "few", plan.rows, kind, at is not None, plan.rank)
    launcher = operands.launchers.get(key)
    if launcher is None:
        launcher = operands.launchers[key] = plan.launcher(kind, at is not None)
    inputs = [x, *operands.arrays]
    inputs += [array for array in (operands.norm, extra, at) if array is not None]
    tiles = operands.width // 16
    waves = -(-tiles // (MULTIPROCESSORS * launcher.blocks))
    blocks, numbers = -(-tiles // waves), {"rows": rows}
    if adapted is not None:
        shrinking = plan.shrinking()
        inputs += shrinking.inputs(adapted)
        blocks += shrinking.shares(adapted)
        numbers |= shrinking.numbers(adapted)
    return launcher(inputs, (blocks, 1, 1), [(rows, operands.width)], [operands.dtype], **numbers)[0]


class Plan:
    """How a block of the kernel lies in its multiprocessor, for so many rows, with adapters up to a rank or without."""

    def __init__(self, operands: Operands, rows: int, rank: int) -> None:
        self.operands = operands
        self.rows = rows
        self.rank = rank
        first = operands.weights[0]
        self.bits, self.group = first.bits, first.group_size

    @property
    def warps(self) -> int:
        supers = self.operands.inner * self.bits // 2048
        return max(count for count in range(1, 9) if supers % count == 0)

    @property
    def is_grouped(self) -> bool:
        """Whether rows and groups together are so few that scales meet sums of groups; as the kernel decides it."""
        columns = 8 // max(1, 512 // self.bits // self.group)
        is_small = self.rows * self.operands.inner * 2 <= 100_000
        return self.rows <= columns and (self.operands.norm is not None or is_small)

    @property
    def is_staged(self) -> bool:
        """Whether rows go to shared memory: to be normed, or because they fit beside another block's."""
        return self.operands.norm is not None or self.is_grouped

    def ring(self) -> tuple[int, int]:
        """Halves of weights on their way for each warp, as most blocks fit on a multiprocessor; and shared memory."""
        inner, is_gated = self.operands.inner, self.operands.is_gated
        scales = 32 * (2048 // self.bits) // self.group * 2
        rest = (self.rows * inner * 2 if self.is_staged else 0) + (inner * self.bits // 16 if self.is_grouped else 0)
        if self.rank:  # what adapters make of the rows, and 512 for who they are
            rest += self.rank * self.rows * 4 * (2 if is_gated else 1) + 512
        each = 512 * (2 if is_gated else 1) + 32
        sizes = {ring: rest + self.warps * (each + ring * 2048 + (ring // 2 + 1) * scales) for ring in (2, 3, 4)}
        best = max(sizes, key=lambda ring: (self.blocks(sizes[ring]), ring))
        return best, sizes[best]

    def blocks(self, shared: int) -> int:
        """Blocks of a multiprocessor at a time."""
        return max(1, min(SHARED_BYTES // (shared + 1024), 65536 // (self.warps * 32 * REGISTERS)))

    def shrinking(self) -> Shrinking:
        return Shrinking(self.operands, self.rank, ROW_BY_ROW, self.operands.norm is not None, self.warps, 4)

    def launcher(self, kind: int, is_gathered: bool) -> Launcher:
        operands = self.operands
        ring, shared = self.ring()
        optional = {"norm": operands.norm is not None, "added": bool(kind), "at": is_gathered}
        names = ["x", *operands.names, *(name for name, is_there in optional.items() if is_there)]
        constants = {
            **operands.constants,
            "ROWS": self.rows,
            "WARPS": self.warps,
            "NORM": operands.norm is not None,
            "STAGED": self.is_staged,
            "GROUPED": self.is_grouped,
            "ADDED": kind,
            "GATHERED": is_gathered,
            "RING": ring,
        }
        prelude = operands.absent(names) + "constexpr int num_shrinking = 0;\n"
        if self.rank:
            shrinking = self.shrinking()
            prelude = operands.absent(names) + opening(shrinking)
            names += NAMES
            constants |= shrinking.constants
        return Launcher(
            "product_few",
            ["weights"],
            names,
            ["out"],
            constants,
            threads=self.warps * 32,
            blocks=self.blocks(shared),
            shared_memory=shared,
            defines=f"#define EPS {operands.eps!r}f\n#define ADAPTED {int(bool(self.rank))}\n#define APART 0\n",
            prelude=prelude,
        )


def opening(shrinking: Shrinking) -> str:
    """The first blocks of a launch shrink, and say so when they have finished."""
    return (
        "const int num_shrinking = num_tiles * MODULES * SPANS;\n"
        "if (blockIdx.x < num_shrinking) {\nconst int share = blockIdx.x;\nfollow();\n"
        f"{shrinking.text()}\n__syncthreads();\n"
        "if (threadIdx.x == 0) { __threadfence(); atomicAdd((int*)table[9], 1); }\nreturn;\n}\n"
    )
