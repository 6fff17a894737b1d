"""Source: the CUDA kernels' text, and how one is launched. Knows no model.

MLX compiles a body for each set of constants, the first time it runs; shapes of rows and contexts are not among the
constants, so the set is small and can be compiled at start.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import mlx.core as mx

Constants = dict[str, int | bool]

# MLX writes the kernel's head itself; this is how the number of registers gets known to the compiler all the same
LIMITS = """
#undef __global__
#define __global__ __attribute__((global)) __launch_bounds__({threads}, {blocks})
"""


@cache
def text(*names: str) -> str:
    """Some files of `sources`, without comments: MLX hashes a kernel's text on every launch."""
    folder = files("engine.kernels.cuda") / "sources"
    lines = "\n".join((folder / f"{name}.cu").read_text() for name in names).splitlines()
    kept = (re.sub(r"\s*//.*", "", line).strip() for line in lines)
    return "\n".join(line for line in kept if line)


@cache
def wgmma(columns: int) -> str:
    """`multiply`: 64 rows in registers times so many columns in shared memory, onto a lane's columns / 2 sums."""
    count = columns // 2
    sums = ", ".join(f"%{i}" for i in range(count))
    a = ", ".join(f"%{count + i}" for i in range(4))
    outputs = ", ".join(f'"+f"(c[{i}])' for i in range(count))
    return (
        "__device__ __forceinline__ void multiply(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3,"
        " unsigned long long b) {\n"
        f'asm volatile("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{sums}}}, {{{a}}}, %{count + 4},'
        f' 1, 1, 1, 0;" : {outputs} : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));\n}}\n'
    )


class Launcher:
    """One kernel with its constants, of which `blocks` fit on a multiprocessor; called with a grid in blocks."""

    def __init__(
        self,
        name: str,
        headers: Sequence[str],
        inputs: Sequence[str],
        outputs: Sequence[str],
        constants: Constants,
        *,
        threads: int,
        shared_memory: int = 0,
        defines: str = "",
        prelude: str = "",
        blocks: int = 1,
    ) -> None:
        self.threads = threads
        self.template = list(constants.items())
        kernel: Any = mx.fast.cuda_kernel(
            name=f"genserve_{name}_{shared_memory}",
            input_names=list(inputs),
            output_names=list(outputs),
            source=prelude + text(name),
            header=defines + text("common", *headers) + LIMITS.format(threads=threads, blocks=blocks),
            shared_memory=shared_memory,
        )
        self.kernel: Callable[..., list[mx.array]] = kernel

    def __call__(
        self,
        inputs: Sequence[mx.array],
        grid: tuple[int, int, int],
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        return self.kernel(
            inputs=list(inputs),
            template=self.template,
            grid=(grid[0] * self.threads, grid[1], grid[2]),
            threadgroup=(self.threads, 1, 1),
            output_shapes=list(shapes),
            output_dtypes=list(dtypes),
        )
