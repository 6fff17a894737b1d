"""Decode steps: from the tokens that go in to those that are drawn, as one graph of our own.

MLX needs longer to put a step's launches into a graph than the device needs to run them, and does so in every step.
Here they are recorded once, for a number of rows, parts of context, width of block tables, shape of adapters' tiles and
kind of draw; what differs from step to step comes through the mailbox.

Our stream and MLX's know nothing of each other. Before the first of our steps MLX is waited for, and before MLX goes on
our last one is. The cache's arrays are MLX's: where they are is looked up again when some may have been replaced.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import product
from weakref import ref

import mlx.core as mx
import numpy as np

from engine.cache import KVCache
from engine.kernels.cuda import driver, few
from engine.kernels.cuda.adapters import PRODUCTS, TABLE, Pairs, RowsOnDevice, StackOnDevice, plan_tiles
from engine.kernels.cuda.addressing import addresses_of
from engine.kernels.cuda.attention import Attention
from engine.kernels.cuda.decode_graph import decode_layers
from engine.kernels.cuda.drawing import Drawing
from engine.kernels.cuda.halves import Halves
from engine.kernels.cuda.mailbox import HEADER, SLOTS, Mailbox, Slot
from engine.kernels.cuda.recording import Arena, Buffer, RecordedGraph, Recording
from engine.kernels.table import DecodeStep, Tokens

MOST_GRAPHS = 256
Key = tuple[object, ...]


class StepTokens:
    """What a step draws, where the device writes it."""

    def __init__(self, size: int, slot: Slot, end: driver.Event, mailbox: Mailbox) -> None:
        self.size, self.slot = size, slot
        self._end, self._mailbox = end, mailbox

    def read(self) -> list[int]:
        self._end.wait()
        found: list[int] = self.slot.memory[: self.size].tolist()
        return found

    def array(self) -> mx.array:
        return self._mailbox.bring(np.array(self.read(), np.int32))


class StableTables:
    """The tables of whichever stack is in use, where graphs find them whatever becomes of stacks."""

    def __init__(self, num_layers: int, arena: Arena) -> None:
        places: list[tuple[int, tuple[str, ...]]] = [*product(range(num_layers), PRODUCTS)]
        _, base = arena.take(len(places) * TABLE * 8)
        self._addresses = {place: base + at * TABLE * 8 for at, place in enumerate(places)}
        self._stack: Callable[[], StackOnDevice | None] = lambda: None

    def hold(self, stack: StackOnDevice, stream: driver.Stream) -> None:
        if self._stack() is stack:
            return
        self._stack = ref(stack)
        found = {place: pairs for place in self._addresses if (pairs := stack.pairs(*place)) is not None}
        tables = addresses_of([pairs.table for pairs in found.values()])
        for place, table in zip(found, tables, strict=True):
            stream.copy(self._addresses[place], table, TABLE * 8)

    def pairs(self, layer: int, names: tuple[str, ...]) -> Pairs | None:
        stack = self._stack()
        assert stack is not None
        found = stack.pairs(layer, names)
        if found is None:
            return None
        table = Buffer((TABLE,), mx.int64, self._addresses[layer, names])
        return Pairs(found.modules, found.rank, table.as_array())


class DecodeSteps:
    """Those of one model and one cache."""

    def __init__(
        self,
        attention: Attention,
        drawing: Drawing,
        mailbox: Mailbox,
        layers: Sequence[Halves],
        cache: KVCache,
        embed: Callable[..., mx.array],
        head: Callable[[mx.array], mx.array],
    ) -> None:
        self.attention, self.drawing, self.mailbox, self.layers = attention, drawing, mailbox, layers
        self.embed, self.head = embed, head
        self.cache = cache
        self.stream = driver.Stream()
        self._ends = [driver.Event() for _ in range(SLOTS)]
        self._count = 0
        self._arena = Arena()
        self._tables = StableTables(len(layers), self._arena)
        self._graphs: OrderedDict[Key, RecordedGraph] = OrderedDict()
        self._cache_addresses: list[int] = []
        self._num_successors = -1

    def __del__(self) -> None:
        driver.synchronize()  # a step on its way reads what is about to go

    def run(self, step: DecodeStep, adapters: StackOnDevice | None) -> StepTokens:
        """Start a step."""
        previous = step.previous
        if isinstance(previous, mx.array) or self._num_successors != self.cache.num_successors:
            self.follow_mlx()
        tokens = self.mailbox.place_of(previous) if isinstance(previous, mx.array) else self.place_of(previous)
        numbers, attention, rows = step.numbers, self.attention, len(step.numbers.positions)
        letter = attention.letter(numbers)
        posted = self.mailbox.post([*letter, step.sources])
        reply = self.mailbox.take(rows)
        given = {
            "where": posted.word,
            "at": posted.address + 4 * (HEADER + sum(part.size for part in letter)),
            "tokens": tokens,
            "reply": reply.word,
        }
        if not step.is_greedy:
            given["knobs"] = self.mailbox.post([np.ascontiguousarray(step.knobs, np.float32).view(np.int32)]).word
        shape = None
        if step.lora is not None and adapters is not None:
            tiles = plan_tiles(step.lora.numbers)
            shape, given["tiles"] = tiles.shape, self.mailbox.post([tiles]).word
            self._tables.hold(adapters, self.stream)
        parts = attention.num_parts(rows, int(numbers.positions.max()) + 1)
        width = attention.table_width(numbers)
        draw = (step.is_greedy, step.is_filtered and not step.is_greedy)
        self.graph(rows, parts, width, draw, shape, adapters).run(self.stream, **given)
        end = self._ends[self._count % SLOTS]
        self._count += 1
        end.record(self.stream)
        return StepTokens(rows, reply, end, self.mailbox)

    def place_of(self, previous: Tokens) -> int:
        assert isinstance(previous, StepTokens)
        return previous.slot.address

    def follow_mlx(self) -> None:
        """Let MLX finish, and see where the cache's arrays are now."""
        arrays = self.cache.arrays()
        mx.eval(arrays)
        mx.synchronize()
        if self._num_successors == self.cache.num_successors:
            return
        self._num_successors = self.cache.num_successors
        addresses = addresses_of(arrays)
        if addresses != self._cache_addresses:
            self.stream.wait()
            self._graphs.clear()
            self._cache_addresses = addresses

    def graph(
        self,
        rows: int,
        parts: int,
        width: int,
        draw: tuple[bool, bool],
        shape: tuple[int, ...] | None,
        adapters: StackOnDevice | None,
    ) -> RecordedGraph:
        key = (rows, parts, width, draw, shape, None if shape is None or adapters is None else adapters.form)
        found = self._graphs.get(key)
        if found is None:
            found = self._graphs[key] = self.record(rows, parts, width, draw, shape)
            if len(self._graphs) > MOST_GRAPHS:
                self.stream.wait()
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return found

    def record(
        self, rows: int, parts: int, width: int, draw: tuple[bool, bool], shape: tuple[int, ...] | None
    ) -> RecordedGraph:
        def told(name: str, dtype: mx.Dtype = mx.int64, size: int = 1) -> mx.array:
            return Buffer((size,), dtype, name).as_array()

        with Recording(self._arena) as recording:
            staged = self.attention.stage(told("where"), rows, (rows, width))
            tiles = None if shape is None else self.mailbox.receive(told("tiles"), shape)
            adapted = None if tiles is None else RowsOnDevice(self._tables, tiles)
            x = self.embed(told("tokens", mx.int32, rows), at=told("at", mx.int32, rows))
            keys, values = [one.keys for one in self.cache.layers], [one.values for one in self.cache.layers]
            x = decode_layers(x, self.attention, self.layers, staged, adapted, parts, keys, values)
            self.drawing.put(self.head(x), told("reply" if draw[0] else "knobs"), told("reply"), *draw)
        return recording.graph(overlaps=rows <= few.MOST_ROWS)
