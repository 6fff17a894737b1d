"""Decode graph: all layers of a step in which every row decodes, built once for a number of rows and run again.

MLX runs it, and so a step goes on with what else MLX has to do: logprobs, penalties, weights of a form that
`decode_steps` has no kernel for. What changes from step to step comes through the mailbox, so a graph is good for any
batch of its size; its Python is gone through once. There is one for each number of parts of the context, width of
block tables and shape of tiles.
"""

from collections.abc import Callable, Sequence
from itertools import product

import mlx.core as mx

from engine.batch import Batch
from engine.cache import KVCache
from engine.kernels.cuda.adapters import OUTPUT, PRODUCTS, QKV, RowsOnDevice, StackOnDevice, plan_tiles
from engine.kernels.cuda.attention import Attention, Staged
from engine.kernels.cuda.halves import Halves
from engine.kernels.cuda.mailbox import Mailbox
from engine.lora import LoraRows

Graph = Callable[[mx.array, list[mx.array], list[mx.array], list[mx.array]], mx.array]
Key = tuple[int, int, tuple[int, ...] | None]  # parts, table width, shape of tiles


class DecodeGraphs:
    """Of one model."""

    def __init__(self, attention: Attention, mailbox: Mailbox, layers: Sequence[Halves]) -> None:
        self.attention = attention
        self.mailbox = mailbox
        self.layers = layers
        self._graphs: dict[Key, Graph] = {}

    @property
    def is_whole(self) -> bool:
        """Whether there is a kernel for every product."""
        return all(len(layer.products) == 4 for layer in self.layers)

    @property
    def has_late_biases(self) -> bool:
        """Whether a product adds a bias to what it adds already, which takes an operation of MLX's."""
        return any(part.operands.bias is not None for it in self.layers for part in (it.output, it.down) if part)

    def forget_adapters(self) -> None:
        """Their arrays are part of the graphs; new ones need new graphs."""
        self._graphs = {key: graph for key, graph in self._graphs.items() if key[-1] is None}

    def run(
        self, x: mx.array, cache: KVCache, batch: Batch, lora: LoraRows | None, adapters: StackOnDevice | None
    ) -> mx.array:
        attention = self.attention
        parts = attention.num_parts(batch.num_decode_rows, batch.max_decode_context)
        letters, width = [attention.send(batch)], attention.table_width(batch.numbers)
        shape: tuple[int, ...] | None = None
        if lora is not None:
            tiles = plan_tiles(lora.numbers)
            shape = tiles.shape
            letters.append(self.mailbox.send([tiles]))
        key = (parts, width, shape)
        found = self._graphs.get(key)
        if found is None:
            found = self._graphs[key] = self.build(parts, width, adapters, shape)
        return found(x, letters, [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers])

    def build(self, parts: int, width: int, adapters: StackOnDevice | None, shape: tuple[int, ...] | None) -> Graph:
        attention, layers = self.attention, self.layers
        if adapters is not None:
            for halves, names in product(layers, PRODUCTS):
                adapters.pairs(halves.index, names)  # made now, outside of the graph

        def graph(x: mx.array, letters: list[mx.array], keys: list[mx.array], values: list[mx.array]) -> mx.array:
            rows = x.shape[0]
            staged = attention.stage(letters[0], rows, (rows, width))
            tiles = None if shape is None else self.mailbox.receive(letters[1], shape)
            tiled = None if adapters is None or tiles is None else RowsOnDevice(adapters, tiles)
            return decode_layers(x, attention, layers, staged, tiled, parts, keys, values)

        compiled: Graph = mx.compile(graph)
        return compiled


def decode_layers(
    x: mx.array,
    attention: Attention,
    layers: Sequence[Halves],
    staged: Staged,
    adapters: RowsOnDevice | None,
    parts: int,
    keys: Sequence[mx.array],
    values: Sequence[mx.array],
) -> mx.array:
    """All layers' launches."""
    rows = x.shape[0]
    for halves, cached_keys, cached_values in zip(layers, keys, values, strict=True):
        qkv, output = halves.qkv, halves.output
        assert qkv and output
        y = attention.decode(
            qkv(x, adapted=halves.adapted(adapters, QKV)),
            halves.norms,
            cached_keys,
            cached_values,
            staged,
            rows,
            parts,
            output.layout(rows),
        )
        x = output(y, x, is_laid_out=True, adapted=halves.adapted(adapters, OUTPUT))
        x = halves.feed_forward(x, adapters)
    return x
