"""Source: the CUDA kernels' text, and how one is launched. Knows no model.

A kernel is compiled for each set of constants, the first time it is called; numbers of rows and lengths of contexts
are not among the constants, so the set is small and can be compiled at start.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import ClassVar, Self

import mlx.core as mx

from engine.kernels.cuda import shortcut
from engine.kernels.cuda.compiler import machine_code

Constants = dict[str, int | bool]
TYPES = {mx.bfloat16: "bf16", mx.float32: "float", mx.int32: "int", mx.uint32: "u32", mx.int64: "long long"}


@cache
def text(*names: str) -> str:
    """Some files of `sources`, without comments, so that a comment changed is not a kernel to compile."""
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


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel that is called: with what, in how many blocks, and what it is to give."""

    launcher: "Launcher"
    inputs: Sequence[mx.array]
    grid: tuple[int, int, int]
    shapes: Sequence[tuple[int, ...]]
    dtypes: Sequence[mx.Dtype]
    numbers: Mapping[str, int]

    @property
    def input_dtypes(self) -> list[mx.Dtype]:
        return [array.dtype for array in self.inputs]


class Recorder(ABC):
    """Within it MLX carries no launch out: all are its own."""

    def __enter__(self) -> Self:
        assert Launcher.recorder is None
        Launcher.recorder = self
        return self

    def __exit__(self, *error: object) -> None:
        Launcher.recorder = None

    @abstractmethod
    def record(self, launch: Launch) -> list[mx.array]:
        """What stands for the outputs."""


class Launcher:
    """One kernel with its constants, of which `blocks` fit on a multiprocessor; called with a grid in blocks."""

    recorder: ClassVar[Recorder | None] = None  # whose turn it is, in place of MLX

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
        self.name = name
        self.inputs, self.outputs = inputs, outputs
        self.threads, self.blocks, self.shared_memory = threads, blocks, shared_memory
        self.header = defines + text("common", *headers)
        numbers = "".join(f"constexpr auto {key} = {str(value).lower()};\n" for key, value in constants.items())
        follow = "" if "follow();" in text(name) else "follow();\n"  # at once, where a kernel does not say when
        self.body = numbers + follow + prelude + text(name)
        self._machine: tuple[str, bytes] | None = None
        self._code: tuple[str, bytes] | None = None

    def __call__(
        self,
        inputs: Sequence[mx.array],
        grid: tuple[int, int, int],
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[mx.Dtype],
        **numbers: int,
    ) -> list[mx.array]:
        """`numbers` are whatever else the kernel reads, by the names that it has for them."""
        if Launcher.recorder is not None:
            return Launcher.recorder.record(Launch(self, inputs, grid, shapes, dtypes, numbers))
        if self._code is None:
            name, machine = self.machine([array.dtype for array in inputs], dtypes, numbers)
            self._code = name, self.shown(name, machine, [array.dtype for array in inputs], dtypes, numbers)
        name, code = self._code
        return self.launch(name, code, inputs, grid, shapes, dtypes, [*numbers.values(), 0])

    def launch(
        self,
        name: str,
        code: bytes,
        inputs: Sequence[mx.array],
        grid: tuple[int, int, int],
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[mx.Dtype],
        scalars: Sequence[int],
    ) -> list[mx.array]:
        return mx.fast.precompiled_cuda_kernel(
            name=name,
            compiled_source=code,
            inputs=list(inputs),
            output_shapes=list(shapes),
            output_dtypes=list(dtypes),
            scalars=list(scalars),
            grid=(grid[0] * self.threads, grid[1], grid[2]),
            threadgroup=(self.threads, 1, 1),
            shared_memory=self.shared_memory,
            ensure_row_contiguous=True,
        )

    def machine(
        self, inputs: Sequence[mx.Dtype], outputs: Sequence[mx.Dtype], numbers: Mapping[str, int]
    ) -> tuple[str, bytes]:
        """The kernel's name, which tells it from all others, and its code."""
        if self._machine is None:
            self._machine = self.compile(inputs, outputs, numbers)
        return self._machine

    def compile(
        self, inputs: Sequence[mx.Dtype], outputs: Sequence[mx.Dtype], numbers: Mapping[str, int]
    ) -> tuple[str, bytes]:
        name, whole = self.whole(inputs, outputs, numbers)
        return name, machine_code(whole)

    def whole(
        self, inputs: Sequence[mx.Dtype], outputs: Sequence[mx.Dtype], numbers: Mapping[str, int]
    ) -> tuple[str, str]:
        """The kernel's name and all of its text."""
        arguments = [f"const {TYPES[dtype]}* {name}" for name, dtype in zip(self.inputs, inputs, strict=True)]
        arguments += [f"{TYPES[dtype]}* {name}" for name, dtype in zip(self.outputs, outputs, strict=True)]
        arguments += [f"int {name}" for name in (*numbers, "is_rehearsal")]
        bounds = f"__launch_bounds__({self.threads}, {self.blocks})"
        rest = f"({', '.join(arguments)}) {{\nif (is_rehearsal) return;\n{self.body}\n}}\n"
        digest = hashlib.sha256((self.header + bounds + rest).encode()).hexdigest()[:16]
        name = f"genserve_{self.name}_{digest}"
        return name, f'{self.header}\nextern "C" __global__ void {bounds} {name}{rest}'

    def shown(
        self,
        name: str,
        code: bytes,
        inputs: Sequence[mx.Dtype],
        outputs: Sequence[mx.Dtype],
        numbers: Mapping[str, int],
    ) -> bytes:
        """What MLX finds the kernel by: its code, or the word for it once MLX has seen the code."""
        if not shortcut.is_open():
            return code
        blanks, shapes = [mx.zeros(1, dtype) for dtype in inputs], [(1,)] * len(outputs)
        mx.eval(self.launch(name, code, blanks, (1, 1, 1), shapes, outputs, [*numbers.values(), 1]))  # MLX has seen it
        return shortcut.word_for(code)
