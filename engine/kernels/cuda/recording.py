"""Recording: a step's launches written down as the nodes of a graph of our own, instead of carried out by MLX.

While it goes on, launchers give buffers in place of arrays: a shape, a type, and an address in memory that all graphs
share, since these run one after another. A buffer that nobody has any more is given to a later launch of the recording.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

import mlx.core as mx

from engine.kernels.cuda import driver
from engine.kernels.cuda.addressing import addresses_of
from engine.kernels.cuda.source import Launch, Launcher, Recorder

LEAST_BYTES = 1 << 12


class Arena:
    """The graphs' memory. It grows with the largest of them."""

    def __init__(self) -> None:
        self._all: list[int] = []
        self._free: dict[int, list[int]] = defaultdict(list)  # by size, a power of two

    def take(self, num_bytes: int) -> tuple[int, int]:
        """Size and address."""
        size = max(LEAST_BYTES, 1 << (num_bytes - 1).bit_length())
        if not self._free[size]:
            self._free[size].append(driver.allocate(size))
            self._all += self._free[size]
        return size, self._free[size].pop()

    def give_back(self, size: int, address: int) -> None:
        self._free[size].append(address)

    def __del__(self) -> None:
        driver.free(self._all)


class Buffer:
    """As much of an array as whoever launches kernels asks for. A name is the address that it will be told later."""

    def __init__(self, shape: tuple[int, ...], dtype: mx.Dtype, address: int | str) -> None:
        self.shape, self.dtype, self.address = shape, dtype, address

    @property
    def size(self) -> int:
        return prod(self.shape)

    def as_array(self) -> mx.array:
        """Itself, for whoever launches kernels as if MLX carried them out."""
        return cast(mx.array, self)


class Taken(Buffer):
    """A buffer in the arena, for as long as somebody has it."""

    def __init__(self, shape: tuple[int, ...], dtype: mx.Dtype, arena: Arena) -> None:
        self._arena = arena
        self._size, address = arena.take(prod(shape) * dtype.size)
        super().__init__(shape, dtype, address)

    def __del__(self) -> None:
        assert isinstance(self.address, int)
        self._arena.give_back(self._size, self.address)


@dataclass(frozen=True, slots=True)
class Written:
    """One launch. Arguments are known addresses, names of those to be told, and arrays."""

    launcher: Launcher
    function: driver.Function
    grid: tuple[int, int, int]
    arguments: list[int | str | mx.array]


class Recording(Recorder):
    """Launches within it are written down."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.written: list[Written] = []

    def record(self, launch: Launch) -> list[mx.array]:
        launcher = launch.launcher
        name, code = launcher.machine(launch.input_dtypes, launch.dtypes, launch.numbers)
        function = driver.function(name, code, launcher.shared_memory)
        outputs = [Taken(shape, dtype, self.arena) for shape, dtype in zip(launch.shapes, launch.dtypes, strict=True)]
        given: list[mx.array | Buffer] = [*launch.inputs, *outputs]
        arguments = [one.address if isinstance(one, Buffer) else one for one in given]
        self.written.append(Written(launcher, function, launch.grid, [*arguments, *launch.numbers.values(), 0]))
        return [output.as_array() for output in outputs]

    def graph(self, *, overlaps: bool) -> "RecordedGraph":
        arrays = {id(one): one for it in self.written for one in it.arguments if isinstance(one, mx.array)}
        places = dict(zip(arrays, addresses_of(list(arrays.values())), strict=True))
        nodes, named = list[driver.Node](), dict[str, list[tuple[driver.Node, int]]]()
        for it in self.written:
            cells = [places.get(id(one), 0) if not isinstance(one, int) else one for one in it.arguments]
            node = driver.Node(it.function, it.grid, it.launcher.threads, it.launcher.shared_memory, cells)
            nodes.append(node)
            for at, one in enumerate(it.arguments):
                if isinstance(one, str):
                    named.setdefault(one, []).append((node, at))
        return RecordedGraph(driver.Graph(nodes, overlaps=overlaps), named)


@dataclass(frozen=True, slots=True)
class RecordedGraph:
    """A graph that can be run again and again, each time told what it is to be told. Its arrays are others' to keep."""

    graph: driver.Graph
    named: Mapping[str, list[tuple[driver.Node, int]]]

    def run(self, stream: driver.Stream, **addresses: int) -> None:
        changed = dict[int, driver.Node]()
        for name, address in addresses.items():
            for node, at in self.named[name]:
                node.cells[at] = address
                changed[id(node)] = node
        for node in changed.values():
            self.graph.change(node)
        self.graph.launch(stream)
