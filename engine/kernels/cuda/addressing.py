"""Addressing: where arrays of MLX are in the device's memory, which MLX tells its kernels alone.

An address is good for as long as its array lives, and no longer than the host reads the array: that moves it.
"""

from collections.abc import Sequence
from functools import cache

import mlx.core as mx
import numpy as np

from engine.kernels.cuda.source import Launcher

AT_ONCE = 32


@cache
def launcher(count: int) -> Launcher:
    names = [f"a{index}" for index in range(count)]
    prelude = f"const void* all[] = {{{', '.join(names)}}};\n"
    return Launcher("addresses", [], names, ["out"], {"COUNT": count}, threads=1, prelude=prelude)


def table_of(arrays: Sequence[mx.array], size: int) -> mx.array:
    """The addresses, lazily, and room for more."""
    return launcher(len(arrays))(list(arrays), (1, 1, 1), [(size,)], [mx.int64])[0]


def addresses_of(arrays: Sequence[mx.array]) -> list[int]:
    """The addresses, for the host."""
    lines = [list(arrays[start : start + AT_ONCE]) for start in range(0, len(arrays), AT_ONCE)]
    tables = [table_of([*line, *line[:1] * (AT_ONCE - len(line))], AT_ONCE) for line in lines]
    mx.eval(tables)
    found: list[int] = np.concatenate([np.array(table) for table in tables]).tolist() if tables else []
    return found[: len(arrays)]
