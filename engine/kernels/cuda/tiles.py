"""Tiles: the product for more than 8 rows, 16 to 64 at a time, with weights that are widened in registers."""

from functools import lru_cache

import mlx.core as mx

from engine.kernels.cuda import low_rank
from engine.kernels.cuda.adapters import MOST_TILES, Adapted
from engine.kernels.cuda.driver import multiprocessors
from engine.kernels.cuda.layout import Layout
from engine.kernels.cuda.operands import MULTIPROCESSORS, SHARED_BYTES, Operands, without
from engine.kernels.cuda.source import Constants, Launcher, text, wgmma

TILES = {16: (1, 4), 32: (1, 3), 64: (1, 3)}  # rows: warpgroups of a block, blocks of a multiprocessor
MOST_PARTS = 8
SHARES = 4  # of what a tile of rows shrinks, so that 32 adapters keep as many blocks busy as there are multiprocessors
MEETING = f"""auto meet_shrinkers = [] {{ asm volatile("bar.sync 2, %0;" ::"n"(SHRINK_WARPS * 32) : "memory"); }};
constexpr int MOST_TILES = {MOST_TILES};
__shared__ int4 slot_of[MODULES * MOST_TILES];
auto find_slot = [&](int module, int tile) {{ return slot_of[module * MOST_TILES + tile]; }};
"""  # of the warps that see to adapters


def tile_of(rows: int) -> int:
    return next((tile for tile in TILES if rows <= tile), max(TILES))


def layout_of(operands: Operands, rows: int) -> Layout:
    """As the tiled product reads so many rows."""
    return Layout(operands.weights[0].bits, tile_of(rows))


def arrange(operands: Operands, x: mx.array, rows: int, at: mx.array | None) -> mx.array:
    """Rows, or some of them, normed and laid out for the tiled product."""
    layout = layout_of(operands, rows)
    has_norm, is_gathered = operands.norm is not None, at is not None
    key = (operands.inner, operands.eps, has_norm, "arrange", layout, is_gathered)
    launcher = operands.launchers.get(key)
    if launcher is None:
        names = ["x", *(["norm"] if has_norm else []), *(["at"] if is_gathered else [])]
        constants = {"K": operands.inner, "NORM": has_norm, "GATHERED": is_gathered, **layout.constants}
        defines, prelude = f"#define EPS {operands.eps!r}f\n", without(names, "norm", "at")
        launcher = operands.launchers[key] = Launcher(
            "arrange", [], names, ["out"], constants, threads=256, defines=defines, prelude=prelude
        )
    inputs = [array for array in (x, operands.norm, at) if array is not None]
    return launcher(inputs, (rows, 1, 1), [layout.shape(rows, operands.inner)], [mx.bfloat16])[0]


def multiply_tiles(
    operands: Operands, x: mx.array, rows: int, added: mx.array | None, give: Layout, adapted: Adapted | None = None
) -> mx.array:
    """The product of so many rows that were laid out, and what `adapted` makes of these, if one tile takes them all.

    `give`: how the result shall lie, if gated.
    """
    tile = tile_of(rows)
    groups, _ = TILES[tile]
    kind, extra = operands.added(added)
    blocks = -(-rows // tile) * -(-operands.width // ((64 if operands.is_gated else 128) * groups))
    parts = 1 if operands.is_float else best_parts(rows, operands.inner, operands.sum_width, blocks)
    is_parted = parts > 1
    rank = 0 if adapted is None else adapted.pairs.rank
    is_alone = blocks * parts <= MULTIPROCESSORS
    key = (operands.form, "many", tile, 0 if is_parted else kind, is_parted, give, rank, is_alone and rank > 0)
    launcher = operands.launchers.get(key)
    if launcher is None:
        launcher = operands.launchers[key] = tiled(
            operands, tile, 0 if is_parted else kind, is_parted, give, rank, is_alone
        )
    inputs, numbers, grid = [x, *operands.arrays], {"rows": rows}, (blocks, parts, 1)
    inputs += [] if is_parted or extra is None else [extra]
    if adapted is not None:
        shrinking = shrinking_of(operands, tile, rank, is_alone)
        inputs += shrinking.inputs(adapted)
        numbers |= {**shrinking.numbers(adapted), "num_certain": multiprocessors()}
    if is_parted:
        sums = launcher(inputs, grid, [(parts, rows, operands.sum_width)], [mx.float32], **numbers)[0]
        return combine(operands, sums, kind, extra, give)
    shape = give.shape(rows, operands.width) if operands.is_gated else (rows, operands.width)
    return launcher(inputs, grid, [shape], [operands.dtype], **numbers)[0]


def shrinking_of(operands: Operands, tile: int, rank: int, is_alone: bool) -> low_rank.Shrinking:
    """What goes along with the product; its rows are normed already."""
    spans = max(1, SHARES // len(operands.weights))
    warps = 8 if is_alone else 4  # a block that has a multiprocessor to itself has registers for more
    ahead = 8 if is_alone and operands.inner // spans > 1024 else 4  # where registers allow, and a share is long
    layout = Layout(operands.weights[0].bits, tile)
    return low_rank.Shrinking(operands, rank, layout, False, warps, ahead, spans)


@lru_cache(maxsize=4096)
def best_parts(rows: int, inner: int, width: int, blocks: int) -> int:
    """Into how many parts the inner dimension goes: what full multiprocessors gain, summing the parts costs."""
    base = max(2 * rows * inner * width / 5e14, inner * width * 0.56 / 3.5e12)

    def seconds(parts: int) -> float:
        waves = -(-blocks * parts // MULTIPROCESSORS)
        fullness = blocks * parts / (waves * MULTIPROCESSORS)
        return base / fullness + (2e-6 + parts * rows * width * 8 / 3e12 if parts > 1 else 0)

    return min(range(1, 1 + min(MOST_PARTS, inner // 512)), key=seconds)


def tiled(
    operands: Operands, tile: int, kind: int, is_parted: bool, give: Layout, rank: int, is_alone: bool
) -> Launcher:
    names = ["x", *operands.names, *(["added"] if kind else [])]
    groups, most_blocks = TILES[tile]
    most_blocks = most_blocks if not rank else 1 if is_alone else 2
    first = operands.weights[0]
    weights = 2 * groups * (128 * 128 + 256 * (16 // first.bits) * 256 // first.group_size)
    shrinking = shrinking_of(operands, tile, rank, is_alone) if rank else None
    sums, table = adapted_bytes(operands, tile, shrinking) if shrinking else (0, 0)
    taken = 2304 + weights + sums + table
    room = {blocks: (SHARED_BYTES // blocks - taken) // (tile * 256) for blocks in range(1, most_blocks + 1)}
    blocks = max(blocks for blocks, stages in room.items() if stages >= 2)  # one is read while the next one comes
    stages = min(4, room[blocks])
    constants = {
        **operands.constants,
        "TOKENS": tile,
        "GROUPS": groups,
        "STAGES": stages,
        "ADDED": kind,
        "PARTS": is_parted,
        "ORDER": give.order,
    }
    prelude = operands.absent(names)
    if shrinking:
        names, constants = [*names, *low_rank.NAMES], constants | shrinking.constants
        constants |= {"IS_CROWDED": blocks > 1}
        shrink = f"auto shrink = [&](int share, float* scratch) {{\n{text('shrink')}\n}};\n"
        prelude += MEETING + shrink + text("adapt")
    return Launcher(
        "product_many",
        ["weights"],
        names,
        ["out"],
        constants,
        threads=128 * groups + (32 * shrinking.warps if shrinking else 0),
        blocks=blocks,
        shared_memory=stages * tile * 256 + weights + sums + 1024,
        prelude=prelude,
        defines=f"#define APART 0\n#define ADAPTED {int(bool(rank))}\n{wgmma(tile)}",
    )


def adapted_bytes(operands: Operands, tile: int, shrinking: low_rank.Shrinking) -> tuple[int, int]:
    """Shared memory for what adapters add to a block and what shrinking made of rows; and for whose rows these are."""
    lows = (2 if operands.is_gated else 1) * tile * shrinking.rank * 2
    lows = max(lows, shrinking.shared_memory)  # first, the place of those who shrink
    return tile * 512 + lows, 4 * tile + MOST_TILES * 16 * len(operands.weights) + 64


def combine(operands: Operands, parts: mx.array, kind: int, extra: mx.array | None, give: Layout) -> mx.array:
    key = ("combine", kind, operands.is_gated, give)
    launcher = operands.launchers.get(key)
    if launcher is None:
        names = ["parts", *(["added"] if kind else [])]
        constants: Constants = {"ADDED": kind, "GATED": operands.is_gated, **give.constants}
        launcher = operands.launchers[key] = Launcher(
            "combine", [], names, ["out"], constants, threads=256, prelude=without(names, "added")
        )
    splits, rows, width = parts.shape
    shape, blocks = give.shape(rows, operands.width), -(-rows * operands.width // 1024)
    inputs = [parts] if extra is None else [parts, extra]
    return launcher(inputs, (blocks, 1, 1), [shape], [mx.bfloat16], splits=splits, rows=rows, width=width)[0]
