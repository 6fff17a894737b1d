"""Driver: the few calls of CUDA's driver that a graph of our own is made of. Knows no kernel and no model.

All is of the context that MLX works in. Whoever makes a stream is the thread that launches on it.
"""

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any

NON_BLOCKING = 1  # of a stream: it does not wait for the one that everybody has
WITHOUT_TIMING = 2  # of an event
DYNAMIC_SHARED_BYTES = 8  # attribute of a function
MULTIPROCESSOR_COUNT = 16  # attribute of a device
Function = c_void_p
PROGRAMMATIC = 1  # port and type of an edge: the next kernel may get ready while the one before it ends


class DriverError(Exception):
    """The driver refused a call."""


class KernelParams(ctypes.Structure):
    _fields_ = [
        ("function", c_void_p),
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_memory", c_uint),
        ("arguments", ctypes.POINTER(c_void_p)),
        ("extra", c_void_p),
        ("kernel", c_void_p),
        ("context", c_void_p),
    ]


class Edge(ctypes.Structure):
    _fields_ = [
        ("from_port", ctypes.c_ubyte),
        ("to_port", ctypes.c_ubyte),
        ("type", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte * 5),
    ]


@cache
def library() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def call(name: str, *arguments: Any) -> None:
    code = getattr(library(), name)(*arguments)
    if code:
        raise DriverError(f"{name} gave {code}")


@cache
def context() -> c_void_p:
    """The one that all of the process share."""
    found = c_void_p()
    call("cuInit", c_uint(0))
    call("cuDevicePrimaryCtxRetain", byref(found), c_int(0))
    return found


@cache
def multiprocessors() -> int:
    """Of the first GPU, or of the part of it that this process has."""
    count = c_int()
    context()
    call("cuDeviceGetAttribute", byref(count), c_int(MULTIPROCESSOR_COUNT), c_int(0))
    return count.value


def synchronize() -> None:
    """Wait for all streams. At the end of a process the driver may be gone, and with it what was waited for."""
    library().cuCtxSetCurrent(context())
    library().cuCtxSynchronize()


def allocate(num_bytes: int) -> int:
    """The address of so much of the device's memory."""
    call("cuCtxSetCurrent", context())
    address = c_uint64()
    call("cuMemAlloc_v2", byref(address), c_size_t(num_bytes))
    return address.value


def free(addresses: Sequence[int]) -> None:
    """Give memory back that nothing uses any more."""
    synchronize()
    for address in addresses:
        library().cuMemFree_v2(c_uint64(address))


@cache
def function(name: str, code: bytes, shared_memory: int) -> Function:
    """A kernel, ready to be launched."""
    module, found = c_void_p(), c_void_p()
    call("cuModuleLoadData", byref(module), code)
    call("cuModuleGetFunction", byref(found), module, name.encode())
    if shared_memory > 48000:
        call("cuFuncSetAttribute", found, c_int(DYNAMIC_SHARED_BYTES), c_int(shared_memory))
    return found


class Stream:
    """What is put on it is done in that order."""

    def __init__(self) -> None:
        call("cuCtxSetCurrent", context())
        self.handle = c_void_p()
        call("cuStreamCreate", byref(self.handle), c_uint(NON_BLOCKING))

    def copy(self, to: int, source: int, num_bytes: int) -> None:
        """Within the device's memory."""
        call("cuMemcpyDtoDAsync_v2", c_uint64(to), c_uint64(source), c_size_t(num_bytes), self.handle)

    def wait(self) -> None:
        call("cuStreamSynchronize", self.handle)


class Event:
    """A point of a stream that the host can wait for."""

    def __init__(self) -> None:
        self.handle = c_void_p()
        call("cuEventCreate", byref(self.handle), c_uint(WITHOUT_TIMING))

    def record(self, stream: Stream) -> None:
        call("cuEventRecord", self.handle, stream.handle)

    def wait(self) -> None:
        call("cuEventSynchronize", self.handle)


class Node:
    """A kernel with its grid and arguments, which may be changed between two runs of its graph."""

    def __init__(
        self,
        function: Function,
        grid: tuple[int, int, int],
        threads: int,
        shared_memory: int,
        arguments: Sequence[int],
    ) -> None:
        self.handle = c_void_p()
        self.cells = (c_uint64 * len(arguments))(*arguments)  # an int is read from a cell's lower half
        first = ctypes.addressof(self.cells)
        self._addresses = (c_void_p * len(arguments))(*range(first, first + 8 * len(arguments), 8))
        pointers = ctypes.cast(self._addresses, ctypes.POINTER(c_void_p))
        block = (c_uint * 3)(threads, 1, 1)
        self.params = KernelParams(function, (c_uint * 3)(*grid), block, shared_memory, pointers)


class Graph:
    """Kernels one after another. With `overlaps`, each one is begun while the one before it ends (see common.cu)."""

    def __init__(self, nodes: Sequence[Node], *, overlaps: bool) -> None:
        self.nodes = nodes
        graph, self._runnable = c_void_p(), c_void_p()
        call("cuGraphCreate", byref(graph), c_uint(0))
        for node in nodes:
            call("cuGraphAddKernelNode_v2", byref(node.handle), graph, None, c_size_t(0), byref(node.params))
        count = len(nodes) - 1
        handles = [node.handle.value for node in nodes]
        sources, targets = (c_void_p * count)(*handles[:-1]), (c_void_p * count)(*handles[1:])
        kind = PROGRAMMATIC if overlaps else 0
        edges = (Edge * count)(*(Edge(kind, 0, kind) for _ in range(count)))
        call("cuGraphAddDependencies_v2", graph, sources, targets, edges, c_size_t(count))
        call("cuGraphInstantiateWithFlags", byref(self._runnable), graph, c_uint64(0))
        self._graph = graph

    def change(self, node: Node) -> None:
        """Let later runs have the arguments that the node has now."""
        call("cuGraphExecKernelNodeSetParams_v2", self._runnable, node.handle, byref(node.params))

    def launch(self, stream: Stream) -> None:
        call("cuGraphLaunch", self._runnable, stream.handle)

    def __del__(self) -> None:
        library().cuGraphExecDestroy(self._runnable)
        library().cuGraphDestroy(self._graph)
