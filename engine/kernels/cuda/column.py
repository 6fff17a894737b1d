"""The CUDA column: five launches a layer while rows decode. What it has no kernel for, `portable` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.batch import Batch
from engine.cache import CacheDtype, KVCache, LayerCache
from engine.config import ModelConfig
from engine.kernels.cuda import warming
from engine.kernels.cuda.adapters import LINE, StackOnDevice, add_pairs, blank_pairs, plan_tiles
from engine.kernels.cuda.attention import Attention, PlannedBatch
from engine.kernels.cuda.drawing import Drawing
from engine.kernels.cuda.mailbox import Mailbox
from engine.kernels.cuda.matrices import NEVER, Matrices, can_multiply
from engine.kernels.cuda.operands import Operands
from engine.kernels.cuda.source import Launcher
from engine.kernels.cuda.tiles import ROW_BY_ROW, Layout
from engine.kernels.expand import Expand
from engine.kernels.portable import PortableKernels, one_by_one
from engine.lora import LoraRows
from engine.quantized import QuantizedTensor
from engine.weights import Layer, Linear, Weights

DENSE_FROM = 192  # rows, where bf16 copies are kept
QKV, OUTPUT, GATE_UP, DOWN = ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)


@dataclass(frozen=True, slots=True)
class Halves:
    """The products of one layer; None where the weights have another form."""

    layer: Layer  # kept, so that its id stays its own
    index: int
    qkv: Matrices | None
    output: Matrices | None
    gate_up: Matrices | None
    down: Matrices | None
    norms: list[mx.array]  # of queries and keys

    @property
    def products(self) -> list[Matrices]:
        return [part for part in (self.qkv, self.output, self.gate_up, self.down) if part is not None]


@dataclass(frozen=True, slots=True)
class RowsOnDevice:
    """Which row has which adapter, as the kernels take it."""

    stack: StackOnDevice
    tiles: mx.array


def adapted(
    adapters: RowsOnDevice | None,
    index: int,
    names: tuple[str, ...],
    matrices: Matrices,
    x: mx.array,
    rows: int,
    added: mx.array | None,
    layout: Layout = ROW_BY_ROW,
) -> mx.array | None:
    """`added` and what the adapters, if there are any, make of x in some modules of a layer."""
    pairs = None if adapters is None else adapters.stack.pairs(index, names)
    if adapters is None or pairs is None:
        return added
    return add_pairs(matrices.operands, pairs, adapters.tiles, x, rows, added, layout)


class CudaKernels:
    """One model's kernels on one NVIDIA GPU."""

    name = "cuda"
    cache_dtype: CacheDtype = "bfloat16"

    def __init__(self, config: ModelConfig, block_size: int, expand: Expand = "auto") -> None:
        self.config = config
        self.portable = PortableKernels(config, block_size)
        self.mailbox = Mailbox()
        can_attend = Attention.can_attend(config, block_size)
        self.attention_kernels = Attention(config, block_size, self.mailbox) if can_attend else None
        self.drawing = Drawing(self.mailbox)
        self.expand = expand
        self.dense_from = NEVER
        self._halves: dict[int, Halves] = {}
        self._head: tuple[Weights, Matrices | None] | None = None
        self._planned: PlannedBatch | None = None
        self._rows: tuple[LoraRows, RowsOnDevice | None] | None = None
        self._stacks: dict[tuple[object, ...], Callable[..., mx.array]] = {}
        self._launchers: dict[object, Launcher] = {}

    # Preparation

    def prepare(self, weights: Weights) -> Weights:
        """Floats become bfloat16; copies for large batches are made where memory allows."""
        prepared = weights.map(as_bfloat16)
        mx.eval([array for _, array in prepared.named()])
        if self.expand == "always" or (self.expand == "auto" and has_room(prepared)):
            self.dense_from = DENSE_FROM
        for index, layer in enumerate(prepared.layers):
            halves = self._halves[id(layer)] = self.build(layer, index)
            if self.dense_from < NEVER:
                for matrices in halves.products:
                    matrices.expand()
        return prepared

    def warm_up(self, weights: Weights, cache: KVCache, max_rows: int, max_tokens: int) -> None:
        """Each kind of batch runs once; and what some other number of rows needs is compiled."""
        for batch in warming.batches(max_rows, max_tokens, cache.block_size):
            x = self.layers(self.embed(weights, batch.tokens), weights, cache, batch, None)
            logits = self.logits(x, weights, batch.numbers.output_rows)
            for is_greedy, is_filtered in ((True, False), (False, False), (False, True)):
                knobs = np.zeros((logits.shape[0], 5), np.float32)
                tokens = self.draw(logits, knobs, is_greedy=is_greedy, is_filtered=is_filtered)
                mx.eval(tokens, cache.arrays())
        halves = self.halves(weights.layers[0], 0)
        for rows in {*range(1, max_rows + 1), *range(64, max_tokens + 1, 64), max_tokens}:
            self.compile(halves, rows, warming.COMMON_RANKS if rows in warming.FEW_AND_TILES else ())
        for rows in warming.row_counts(max_rows):
            self.logits(
                mx.zeros((rows + 1, self.config.hidden_size), mx.bfloat16), weights, np.arange(rows, dtype=np.int32)
            )

    def compile(self, halves: Halves, rows: int, ranks: tuple[int, ...]) -> None:
        """The products of a layer for so many rows, with adapters of some ranks and without: built, never computed."""
        for matrices in halves.products:
            operands = matrices.operands
            is_last = operands.norm is None  # of its half: rows come laid out, and a residual is added
            layout = matrices.layout(rows) if is_last else ROW_BY_ROW
            give = halves.down.layout(rows) if operands.is_gated and halves.down else ROW_BY_ROW
            x = mx.zeros(layout.shape(rows, operands.inner), mx.bfloat16)
            delta = mx.zeros((rows, operands.sum_width), mx.bfloat16)
            for added in (delta,) if is_last else (None, delta):
                matrices(x, added, is_laid_out=is_last, give=give)
            for rank in ranks:
                pairs, tiles = blank_pairs(operands, rank), mx.zeros((1, LINE), mx.int32)
                add_pairs(operands, pairs, tiles, x, rows, delta if is_last else None, layout)

    def halves(self, layer: Layer, index: int) -> Halves:
        found = self._halves.get(id(layer))
        if found is None:
            found = self._halves[id(layer)] = self.build(layer, index)
        return found

    def build(self, layer: Layer, index: int) -> Halves:
        def joined(names: tuple[str, ...], norm: mx.array | None, is_gated: bool = False) -> Matrices | None:
            linears: list[Linear] = [getattr(layer, name) for name in names]
            biases = [linear.bias for linear in linears if linear.bias is not None]
            if not can_multiply(linears, norm) or (biases and len(biases) != len(linears)):
                return None
            return self.matrices(linears, mx.concatenate(biases) if biases else None, norm, is_gated)

        norms = [] if layer.q_norm is None or layer.k_norm is None else [layer.q_norm, layer.k_norm]
        return Halves(
            layer,
            index,
            joined(QKV, layer.input_layernorm),
            joined(OUTPUT, None),
            joined(GATE_UP, layer.post_attention_layernorm, is_gated=True),
            joined(DOWN, None),
            norms,
        )

    def matrices(
        self, linears: Sequence[Linear], bias: mx.array | None, norm: mx.array | None, is_gated: bool
    ) -> Matrices:
        weights = tuple(linear.weight for linear in linears if isinstance(linear.weight, QuantizedTensor))
        eps = self.config.rms_norm_eps
        return Matrices(Operands(weights, self._launchers, bias, norm, eps, is_gated), self.dense_from)

    # The table

    def embed(self, weights: Weights, tokens: mx.array) -> mx.array:
        table = weights.embed_tokens
        if not can_multiply([Linear(table)]) or not isinstance(table, QuantizedTensor) or table.biases is None:
            return self.portable.embed(weights, tokens)
        inner = table.logical_shape[1]
        launcher = self._launchers.get("embed")
        if launcher is None:
            constants = {"BITS": table.bits, "GROUP": table.group_size, "K": inner}
            launcher = Launcher("embed", [], ["tokens", "w0", "s0", "b0"], ["out"], constants, threads=128)
            self._launchers["embed"] = launcher
        inputs = [tokens, table, table.scales, table.biases]
        return launcher(inputs, (tokens.size, 1, 1), [(tokens.size, inner)], [mx.bfloat16])[0]

    def attention(
        self, x: mx.array, layer: Layer, index: int, cache: LayerCache, batch: Batch, lora: LoraRows | None
    ) -> mx.array:
        halves, attention, adapters = self.halves(layer, index), self.attention_kernels, self.rows_of(lora)
        is_foreign = attention is None or halves.qkv is None or halves.output is None
        if is_foreign or cache.keys.dtype != mx.bfloat16 or (lora is not None and adapters is None):
            return self.portable.attention(x, layer, index, cache, batch, lora)
        assert attention and halves.qkv and halves.output
        if self._planned is None or self._planned.batch is not batch:
            self._planned = attention.plan(batch)
        planned, count, rows = self._planned, batch.num_decode_rows, x.shape[0]
        is_mixed = bool(count) and planned.pieces is not None
        give = ROW_BY_ROW if is_mixed else halves.output.layout(rows)
        qkv = halves.qkv(x, adapted(adapters, index, QKV, halves.qkv, x, rows, None))
        parts = []
        if count:
            parts.append(
                attention.decode(
                    qkv, halves.norms, cache.keys, cache.values, planned.staged, count, planned.num_parts, give
                )
            )
        if planned.pieces is not None:
            prompts = qkv[count:] if count else qkv
            parts.append(attention.chunks(prompts, halves.norms, cache.keys, cache.values, planned, give))
        attended = parts[0] if len(parts) == 1 else mx.concatenate(parts)
        added = adapted(adapters, index, OUTPUT, halves.output, attended, rows, x, give)
        x = halves.output(attended, added, is_laid_out=not is_mixed)
        if batch.chunks and index == self.config.num_layers - 1:  # who waits for the cache waits for the writes
            cache.keys = mx.depends([cache.keys], [x])[0]
        return x

    def feed_forward(self, x: mx.array, layer: Layer, index: int, lora: LoraRows | None) -> mx.array:
        halves, adapters = self.halves(layer, index), self.rows_of(lora)
        if halves.gate_up is None or halves.down is None or (lora is not None and adapters is None):
            return self.portable.feed_forward(x, layer, index, lora)
        return self.fed_forward(x, halves, adapters)

    def fed_forward(
        self,
        x: mx.array,
        halves: Halves,
        adapters: RowsOnDevice | None,
        following: QuantizedTensor | None = None,
    ) -> mx.array:
        gate_up, down, rows, index = halves.gate_up, halves.down, x.shape[0], halves.index
        assert gate_up and down
        layout = down.layout(rows)
        added = adapted(adapters, index, GATE_UP, gate_up, x, rows, None)
        inner = gate_up(x, added, give=layout, after=down.operands.weights[0])
        added = adapted(adapters, index, DOWN, down, inner, rows, x, layout)
        return down(inner, added, is_laid_out=True, after=following)

    def logits(self, x: mx.array, weights: Weights, rows: NDArray[np.int32]) -> mx.array:
        if self._head is None or self._head[0] is not weights:
            head, matrices = weights.head, None
            if isinstance(head, QuantizedTensor) and can_multiply([Linear(head)], weights.norm):
                eps = self.config.rms_norm_eps
                matrices = Matrices(Operands((head,), self._launchers, None, weights.norm, eps, is_float=True))
            self._head = (weights, matrices)
        found = self._head[1]
        if found is None:
            return self.portable.logits(x, weights, rows)
        is_all = rows.size == x.shape[0] and np.array_equal(rows, np.arange(rows.size))
        return found(x) if is_all else found(x, at=self.mailbox.bring(rows))

    def draw(self, logits: mx.array, knobs: NDArray[np.float32], *, is_greedy: bool, is_filtered: bool) -> mx.array:
        if logits.shape[1] % 4:
            return self.portable.draw(logits, knobs, is_greedy=is_greedy, is_filtered=is_filtered)
        return self.drawing.draw(logits, knobs, is_greedy, is_filtered)

    def read(self, tokens: mx.array) -> list[int]:
        return self.mailbox.read(tokens)

    # Adapters

    def rows_of(self, lora: LoraRows | None) -> RowsOnDevice | None:
        """The rows' adapters for the kernels; None if there are none, or of too great a rank."""
        if lora is None:
            return None
        if self._rows is None or self._rows[0] is not lora:
            stack = self.stack_of(lora)
            tiles = self.mailbox.bring(plan_tiles(lora.numbers)) if stack.is_narrow else None
            self._rows = (lora, None if tiles is None else RowsOnDevice(stack, tiles))
        return self._rows[1]

    def stack_of(self, lora: LoraRows) -> StackOnDevice:
        if not isinstance(lora.stack.native, StackOnDevice):
            lora.stack.native = StackOnDevice(lora.stack)
            self._stacks = {key: stack for key, stack in self._stacks.items() if key[-1] is None}
        return lora.stack.native

    # All layers at once

    def layers(self, x: mx.array, weights: Weights, cache: KVCache, batch: Batch, lora: LoraRows | None) -> mx.array:
        """Rows that decode go through a graph that was built once for their number."""
        if batch.chunks or not batch.num_decode_rows or not self.is_whole(weights, cache):
            return one_by_one(self, x, weights, cache, batch, lora)
        stack = None if lora is None else self.stack_of(lora)
        if stack is not None and not stack.is_narrow:
            return one_by_one(self, x, weights, cache, batch, lora)
        attention = self.attention_kernels
        assert attention is not None
        parts = attention.num_parts(batch.num_decode_rows, batch.max_decode_context)
        letters, width = [attention.send(batch)], attention.table_width(batch)
        shape: tuple[int, ...] | None = None
        if lora is not None:
            tiles = plan_tiles(lora.numbers)
            shape = tiles.shape
            letters.append(self.mailbox.send([tiles]))
        key = (parts, width, shape)
        found = self._stacks.get(key)
        if found is None:
            found = self._stacks[key] = self.build_stack(weights, parts, width, stack, shape)
        keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
        return found(x, letters, keys, values)

    def is_whole(self, weights: Weights, cache: KVCache) -> bool:
        """Whether there is a kernel for every part of the layers."""
        layers = [self.halves(layer, index) for index, layer in enumerate(weights.layers)]
        can_attend = self.attention_kernels is not None and cache.layers[0].keys.dtype == mx.bfloat16
        return can_attend and all(len(layer.products) == 4 for layer in layers)

    def build_stack(
        self, weights: Weights, parts: int, width: int, adapters: StackOnDevice | None, shape: tuple[int, ...] | None
    ) -> Callable[..., mx.array]:
        attention = self.attention_kernels
        layers = [self.halves(layer, index) for index, layer in enumerate(weights.layers)]
        assert attention is not None

        def stack(x: mx.array, letters: list[mx.array], keys: list[mx.array], values: list[mx.array]) -> mx.array:
            rows = x.shape[0]
            staged = attention.stage(letters[0], rows, (rows, width))
            tiles = None if shape is None else self.mailbox.receive(letters[1], shape)
            tiled = None if adapters is None or tiles is None else RowsOnDevice(adapters, tiles)
            for index, halves in enumerate(layers):
                qkv, output, gate_up = halves.qkv, halves.output, halves.gate_up
                assert qkv and output and gate_up
                following = layers[index + 1].qkv if index + 1 < len(layers) else None
                give, added = output.layout(rows), adapted(tiled, index, QKV, qkv, x, rows, None)
                y = attention.decode(
                    qkv(x, added),
                    halves.norms,
                    keys[index],
                    values[index],
                    staged,
                    rows,
                    parts,
                    give,
                    output.operands.weights[0],
                )
                added = adapted(tiled, index, OUTPUT, output, y, rows, x, give)
                x = output(y, added, is_laid_out=True, after=gate_up.operands.weights[0])
                x = self.fed_forward(x, halves, tiled, following.operands.weights[0] if following else None)
            return x

        compiled: Callable[..., mx.array] = mx.compile(stack)
        return compiled


def has_room(weights: Weights) -> bool:
    """Whether bf16 copies take less than half of the memory that is free."""
    parameters = sum(w.size * 32 // w.bits for _, w in weights.named() if isinstance(w, QuantizedTensor))
    total = int(mx.device_info().get("memory_size", 0) or mx.device_info().get("total_memory", 0))
    return 2 * parameters < (total - mx.get_active_memory()) // 2


def as_bfloat16(w: mx.array) -> mx.array:
    if not isinstance(w, QuantizedTensor):
        return w.astype(mx.bfloat16)
    if w.biases is None or w.scales.dtype == mx.bfloat16:
        return w
    scales, biases = w.scales.astype(mx.bfloat16), w.biases.astype(mx.bfloat16)
    return QuantizedTensor(w, scales, biases, bits=w.bits, group_size=w.group_size, mode=w.mode)
