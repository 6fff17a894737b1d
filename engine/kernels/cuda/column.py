"""The CUDA column: five launches a layer while rows decode. What it has no kernel for, `portable` does."""

import logging
from functools import partial

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.batch import Batch
from engine.cache import KVCache, LayerCache
from engine.config import ModelConfig
from engine.kernels.cuda import warming
from engine.kernels.cuda.adapters import OUTPUT, QKV, RowsOnDevice, StackOnDevice, plan_tiles
from engine.kernels.cuda.attention import MAX_DECODE_ROWS, Attention, PlannedBatch
from engine.kernels.cuda.decode_graph import DecodeGraphs
from engine.kernels.cuda.decode_steps import DecodeSteps, StepTokens
from engine.kernels.cuda.drawing import Drawing
from engine.kernels.cuda.driver import DriverError
from engine.kernels.cuda.embedding import can_look_up, look_up
from engine.kernels.cuda.halves import Halves, halves_of
from engine.kernels.cuda.layout import ROW_BY_ROW
from engine.kernels.cuda.mailbox import Mailbox
from engine.kernels.cuda.matrices import NEVER, Matrices, can_multiply
from engine.kernels.cuda.operands import Operands
from engine.kernels.cuda.source import Launcher
from engine.kernels.expand import Expand
from engine.kernels.portable import PortableKernels
from engine.kernels.table import DecodeStep, Tokens
from engine.lora import LoraRows
from engine.options import CacheDtype
from engine.quantized import QuantizedTensor
from engine.weights import Layer, Linear, Weights

log = logging.getLogger("genserve")
DENSE_FROM = 192  # rows, where bf16 copies are kept
STRETCH = 6  # layers of a prompt that are computed together; MLX keeps all that is not computed yet
LONG = 128  # rows from which that is worth waiting for


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
        self._graphs: tuple[Weights, DecodeGraphs] | None = None
        self._steps: tuple[Weights, KVCache, DecodeSteps | None] | None = None
        self._launchers: dict[object, Launcher] = {}

    # Preparation

    def prepare(self, weights: Weights) -> Weights:
        """Floats become bfloat16; copies for large batches are made where memory allows."""
        prepared = weights.map(as_bfloat16)
        mx.eval([array for _, array in prepared.named()])
        if self.expand == "always" or (self.expand == "auto" and has_room(prepared)):
            self.dense_from = DENSE_FROM
        for index, layer in enumerate(prepared.layers):
            halves = self.halves(layer, index)
            if self.dense_from < NEVER:
                for matrices in halves.products:
                    matrices.expand()
        return prepared

    def warm_up(self, weights: Weights, cache: KVCache, max_rows: int, max_tokens: int) -> None:
        """Each kind of batch runs once; and what some other number of rows needs is compiled."""
        halves = self.halves(weights.layers[0], 0)
        warming.compile_all_products(halves, max_rows, max_tokens)
        for batch in warming.batches(max_rows, max_tokens, cache.block_size):
            x = self.layers(self.embed(weights, batch.tokens), weights, cache, batch, None)
            logits = self.logits(x, weights, batch.numbers.output_rows)
            for is_greedy, is_filtered in ((True, False), (False, False), (False, True)):
                knobs = np.zeros((logits.shape[0], 5), np.float32)
                tokens = self.draw(logits, knobs, is_greedy=is_greedy, is_filtered=is_filtered)
                mx.eval(tokens, cache.arrays())
                if not batch.chunks:
                    self.try_step(weights, cache, batch, knobs, is_greedy, is_filtered, self.read(tokens))
        warming.run_mlx_kernels(cache, self.config.vocab_size)
        warming.compile_addresses()
        warming.build_products(halves, max_rows, max_tokens)
        for rows in warming.row_counts(max_rows):
            self.logits(
                mx.zeros((rows + 1, self.config.hidden_size), mx.bfloat16), weights, np.arange(rows, dtype=np.int32)
            )

    def halves(self, layer: Layer, index: int) -> Halves:
        found = self._halves.get(id(layer))
        if found is None:
            made = halves_of(layer, index, self.config.rms_norm_eps, self._launchers, self.dense_from)
            found = self._halves[id(layer)] = made
        return found

    # The table

    def embed(self, weights: Weights, tokens: mx.array) -> mx.array:
        table = weights.embed_tokens
        return look_up(table, tokens, self._launchers) if can_look_up(table) else self.portable.embed(weights, tokens)

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
        qkv = halves.qkv(x, adapted=halves.adapted(adapters, QKV))
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
        x = halves.output(attended, x, is_laid_out=not is_mixed, adapted=halves.adapted(adapters, OUTPUT))
        if batch.chunks and index == self.config.num_layers - 1:  # who waits for the cache waits for the writes
            cache.keys = mx.depends([cache.keys], [x])[0]
        return x

    def feed_forward(self, x: mx.array, layer: Layer, index: int, lora: LoraRows | None) -> mx.array:
        halves, adapters = self.halves(layer, index), self.rows_of(lora)
        if halves.gate_up is None or halves.down is None or (lora is not None and adapters is None):
            return self.portable.feed_forward(x, layer, index, lora)
        return halves.feed_forward(x, adapters)

    def logits(self, x: mx.array, weights: Weights, rows: NDArray[np.int32]) -> mx.array:
        found = self.head(weights)
        if found is None:
            return self.portable.logits(x, weights, rows)
        is_all = rows.size == x.shape[0] and np.array_equal(rows, np.arange(rows.size))
        return found(x) if is_all else found(x, at=self.mailbox.bring(rows))

    def head(self, weights: Weights) -> Matrices | None:
        if self._head is None or self._head[0] is not weights:
            head, matrices = weights.head, None
            if isinstance(head, QuantizedTensor) and can_multiply([Linear(head)], weights.norm):
                eps = self.config.rms_norm_eps
                matrices = Matrices(Operands((head,), self._launchers, None, weights.norm, eps, is_float=True))
            self._head = (weights, matrices)
        return self._head[1]

    def draw(self, logits: mx.array, knobs: NDArray[np.float32], *, is_greedy: bool, is_filtered: bool) -> mx.array:
        if logits.shape[1] % 4:
            return self.portable.draw(logits, knobs, is_greedy=is_greedy, is_filtered=is_filtered)
        return self.drawing.draw(logits, knobs, is_greedy, is_filtered)

    def decode(self, weights: Weights, cache: KVCache, step: DecodeStep) -> StepTokens | None:
        stack = None if step.lora is None else self.stack_of(step.lora)
        rows = len(step.numbers.positions)
        if rows >= self.dense_from or rows > MAX_DECODE_ROWS or (stack is not None and not stack.is_narrow):
            return None
        steps = self.steps(weights, cache)
        return None if steps is None else steps.run(step, stack)

    def steps(self, weights: Weights, cache: KVCache) -> DecodeSteps | None:
        """Whole steps, if there is a kernel for all of them."""
        if self._steps is None or self._steps[0] is not weights or self._steps[1] is not cache:
            graphs, head, made = self.graphs(weights), self.head(weights), None
            is_ours = (
                graphs is not None
                and graphs.is_whole
                and not graphs.has_late_biases
                and cache.layers[0].keys.dtype == mx.bfloat16
            )
            can_draw = head is not None and weights.head.shape[0] % 4 == 0
            if graphs is not None and is_ours and head is not None and can_draw and can_look_up(weights.embed_tokens):
                embed = partial(look_up, weights.embed_tokens, launchers=self._launchers)
                made = DecodeSteps(graphs.attention, self.drawing, self.mailbox, graphs.layers, cache, embed, head)
            self._steps = (weights, cache, made)
        return self._steps[2]

    def try_step(
        self,
        weights: Weights,
        cache: KVCache,
        batch: Batch,
        knobs: NDArray[np.float32],
        is_greedy: bool,
        is_filtered: bool,
        wanted: list[int],
    ) -> None:
        """Whole steps earn their place: one that does not draw what MLX's launches draw is the last."""
        sources = np.arange(batch.num_rows, dtype=np.int32)
        step = DecodeStep(batch.numbers, batch.tokens, sources, None, knobs, is_greedy, is_filtered)
        try:
            found = self.decode(weights, cache, step)
            reason = None if found is None or found.read() == wanted else "they draw other tokens"
        except DriverError as error:
            reason = str(error)
        if reason is not None:
            log.warning(f"decode steps stay with MLX's graphs: {reason}")
            self._steps = (weights, cache, None)

    def read(self, tokens: mx.array | Tokens) -> list[int]:
        return self.mailbox.read(tokens) if isinstance(tokens, mx.array) else tokens.read()

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
            if self._graphs is not None:
                self._graphs[1].forget_adapters()
        return lora.stack.native

    # All layers at once

    def layers(self, x: mx.array, weights: Weights, cache: KVCache, batch: Batch, lora: LoraRows | None) -> mx.array:
        """Rows that decode go through a graph that was built once for their number."""
        graphs = self.graphs(weights)
        stack = None if lora is None else self.stack_of(lora)
        is_foreign = graphs is None or not graphs.is_whole or cache.layers[0].keys.dtype != mx.bfloat16
        if batch.chunks or not batch.num_decode_rows or is_foreign or (stack is not None and not stack.is_narrow):
            return self.by_stretches(x, weights, cache, batch, lora)
        assert graphs is not None
        return graphs.run(x, cache, batch, lora, stack)

    def graphs(self, weights: Weights) -> DecodeGraphs | None:
        if self.attention_kernels is None:
            return None
        if self._graphs is None or self._graphs[0] is not weights:
            layers = [self.halves(layer, index) for index, layer in enumerate(weights.layers)]
            self._graphs = (weights, DecodeGraphs(self.attention_kernels, self.mailbox, layers))
        return self._graphs[1]

    def by_stretches(
        self, x: mx.array, weights: Weights, cache: KVCache, batch: Batch, lora: LoraRows | None
    ) -> mx.array:
        """Layer by layer; of a long batch no more than two stretches are under way, for their memory's sake."""
        before: mx.array | None = None
        for index, layer in enumerate(weights.layers):
            x = self.attention(x, layer, index, cache.layers[index], batch, lora)
            x = self.feed_forward(x, layer, index, lora)
            if batch.num_rows >= LONG and index % STRETCH == STRETCH - 1:
                mx.async_eval(x)
                if before is not None:
                    mx.eval(before)
                before = x
        return x


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
