"""The CUDA column: five launches a layer while few rows decode. What it has no kernel for, `portable` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import numpy as np

from engine.batch import Batch
from engine.cache import CacheDtype, KVCache, LayerCache
from engine.config import ModelConfig
from engine.kernels.cuda.attention import Attention, PlannedBatch
from engine.kernels.cuda.mailbox import Mailbox
from engine.kernels.cuda.matrices import ROW_BY_ROW, Matrices, can_multiply
from engine.kernels.cuda.source import Launcher
from engine.kernels.portable import PortableKernels
from engine.lora import LoraRows
from engine.quantized import QuantizedTensor
from engine.weights import Layer, Linear, Weights

Expand = Literal["auto", "always", "never"]
DENSE_FROM = 192  # rows, where bf16 copies are kept
COMPILED_ROWS = 64  # up to so many decode rows the host would be slower than the machine: whole stack as one graph


@dataclass(frozen=True, slots=True)
class Halves:
    """The products of one layer; None where the weights have another form."""

    layer: Layer  # kept, so that its id stays its own
    qkv: Matrices | None
    output: Matrices | None
    gate_up: Matrices | None
    down: Matrices | None
    norms: list[mx.array]  # of queries and keys


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
        self.expand = expand
        self.dense_from = 1 << 30
        self._halves: dict[int, Halves] = {}
        self._head: tuple[Weights, Matrices | None] | None = None
        self._planned: PlannedBatch | None = None
        self._stacks: dict[tuple[int, int], Callable[..., mx.array]] = {}
        self._launchers: dict[object, Launcher] = {}

    # Preparation

    def prepare(self, weights: Weights) -> Weights:
        """Floats become bfloat16; copies for large batches are made where memory allows."""
        prepared = weights.map(as_bfloat16)
        mx.eval([array for _, array in prepared.named()])
        if self.expand == "always" or (self.expand == "auto" and self.has_room(prepared)):
            self.dense_from = DENSE_FROM
            for layer in prepared.layers:
                for matrices in self.matrices(layer):
                    matrices.expand()
        return prepared

    def has_room(self, weights: Weights) -> bool:
        """Whether bf16 copies take less than half of the memory that is free."""
        parameters = sum(w.size * 32 // w.bits for _, w in weights.named() if isinstance(w, QuantizedTensor))
        total = int(mx.device_info().get("memory_size", 0) or mx.device_info().get("total_memory", 0))
        return 2 * parameters < (total - mx.get_active_memory()) // 2

    def halves(self, layer: Layer) -> Halves:
        found = self._halves.get(id(layer))
        if found is None:
            found = self._halves[id(layer)] = self.build(layer)
        return found

    def matrices(self, layer: Layer) -> list[Matrices]:
        halves = self.halves(layer)
        return [part for part in (halves.qkv, halves.output, halves.gate_up, halves.down) if part is not None]

    def build(self, layer: Layer) -> Halves:
        eps = self.config.rms_norm_eps

        def joined(linears: Sequence[Linear], norm: mx.array | None, is_gated: bool = False) -> Matrices | None:
            if not can_multiply(linears):
                return None
            biases = [linear.bias for linear in linears if linear.bias is not None]
            if biases and len(biases) != len(linears):
                return None
            weights = tuple(linear.weight for linear in linears if isinstance(linear.weight, QuantizedTensor))
            bias = mx.concatenate(biases) if biases else None
            return Matrices(weights, self._launchers, bias, norm, eps, is_gated, dense_from=self.dense_from)

        norms = [] if layer.q_norm is None or layer.k_norm is None else [layer.q_norm, layer.k_norm]
        return Halves(
            layer,
            joined([layer.q_proj, layer.k_proj, layer.v_proj], layer.input_layernorm),
            joined([layer.o_proj], None),
            joined([layer.gate_proj, layer.up_proj], layer.post_attention_layernorm, is_gated=True),
            joined([layer.down_proj], None),
            norms,
        )

    # The table

    def embed(self, weights: Weights, tokens: mx.array) -> mx.array:
        table = weights.embed_tokens
        if not can_multiply([Linear(table)]) or not isinstance(table, QuantizedTensor) or table.biases is None:
            return self.portable.embed(weights, tokens)
        inner = table.logical_shape[1]
        launcher = self._launchers.get("embed")
        if launcher is None:
            launcher = self._launchers["embed"] = Launcher(
                "embed",
                [],
                ["tokens", "w0", "s0", "b0"],
                ["out"],
                {"BITS": table.bits, "GROUP": table.group_size, "K": inner},
                threads=128,
            )
        inputs = [tokens, table, table.scales, table.biases]
        return launcher(inputs, (tokens.size, 1, 1), [(tokens.size, inner)], [mx.bfloat16])[0]

    def attention(
        self, x: mx.array, layer: Layer, index: int, cache: LayerCache, batch: Batch, lora: LoraRows | None
    ) -> mx.array:
        halves = self.halves(layer)
        attention = self.attention_kernels
        if (
            attention is None
            or halves.qkv is None
            or halves.output is None
            or lora is not None
            or cache.keys.dtype != mx.bfloat16
        ):
            return self.portable.attention(x, layer, index, cache, batch, lora)
        if self._planned is None or self._planned.batch is not batch:
            self._planned = attention.plan(batch)
        planned, count, layout = self._planned, batch.num_decode_rows, halves.output.layout(x.shape[0])
        is_mixed = bool(count) and planned.pieces is not None
        give = ROW_BY_ROW if is_mixed else layout
        qkv, norms = halves.qkv(x), halves.norms
        parts = []
        if count:
            parts.append(
                attention.decode(qkv, norms, cache.keys, cache.values, planned.staged, count, planned.num_parts, give)
            )
        if planned.pieces is not None:
            prompts = qkv[count:] if count else qkv
            parts.append(attention.chunks(prompts, norms, cache.keys, cache.values, planned, give))
        attended = parts[0] if len(parts) == 1 else mx.concatenate(parts)
        x = halves.output(attended, x, is_laid_out=not is_mixed)
        if batch.chunks and index == self.config.num_layers - 1:  # who waits for the cache waits for the writes
            cache.keys = mx.depends([cache.keys], [x])[0]
        return x

    def feed_forward(self, x: mx.array, layer: Layer, index: int, lora: LoraRows | None) -> mx.array:
        halves = self.halves(layer)
        if halves.gate_up is None or halves.down is None or lora is not None:
            return self.portable.feed_forward(x, layer, index, lora)
        inner = halves.gate_up(x, give=halves.down.layout(x.shape[0]))
        return halves.down(inner, x, is_laid_out=True)

    def logits(self, x: mx.array, weights: Weights, rows: mx.array) -> mx.array:
        if self._head is None or self._head[0] is not weights:
            head = weights.head
            matrices = None
            if isinstance(head, QuantizedTensor) and can_multiply([Linear(head)]):
                eps = self.config.rms_norm_eps
                matrices = Matrices(
                    (head,), self._launchers, None, weights.norm, eps, is_float=True, dense_from=1 << 30
                )
            self._head = (weights, matrices)
        found = self._head[1]
        if found is None:
            return self.portable.logits(x, weights, rows)
        is_all = rows.size == x.shape[0] and np.array_equal(np.array(rows), np.arange(rows.size))
        return found(x) if is_all else found(x, at=rows)

    def draw(self, logits: mx.array, knobs: mx.array, *, is_greedy: bool, is_filtered: bool) -> mx.array:
        if not is_greedy or logits.shape[1] % 4:
            return self.portable.draw(logits, knobs, is_greedy=is_greedy, is_filtered=is_filtered)
        launcher = self._launchers.get("largest")
        if launcher is None:
            names = ["logits", "letter"]
            launcher = self._launchers["largest"] = Launcher("largest", [], names, ["out"], {}, threads=1024)
        rows = logits.shape[0]
        letter, slot = self.mailbox.expect(rows)
        tokens = launcher([logits, letter], (rows, 1, 1), [(rows,)], [mx.int32])[0]
        self.mailbox.note(tokens, slot)
        return tokens

    def read(self, tokens: mx.array) -> list[int]:
        """Wait for drawn tokens."""
        return self.mailbox.read(tokens)

    # All layers at once

    def hidden(self, weights: Weights, cache: KVCache, batch: Batch, lora: LoraRows | None) -> mx.array:
        """What the last layer gives. A few decode rows go through a graph that was built once for their number."""
        is_small = 0 < batch.num_decode_rows <= COMPILED_ROWS and not batch.chunks and lora is None
        if not is_small or not self.is_whole(weights, cache):
            x = self.embed(weights, batch.tokens)
            for index, layer in enumerate(weights.layers):
                x = self.attention(x, layer, index, cache.layers[index], batch, lora)
                x = self.feed_forward(x, layer, index, lora)
            return x
        assert self.attention_kernels is not None
        attention = self.attention_kernels
        parts = attention.num_parts(batch.num_decode_rows, batch.max_decode_context)
        width = batch.block_tables.shape[1]
        stack = self._stacks.get((parts, width))
        if stack is None:
            stack = self._stacks[parts, width] = self.build_stack(weights, parts, width)
        keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
        return stack(batch.tokens, attention.send(batch), keys, values)

    def is_whole(self, weights: Weights, cache: KVCache) -> bool:
        is_bfloat16 = cache.layers[0].keys.dtype == mx.bfloat16
        return (
            is_bfloat16
            and self.attention_kernels is not None
            and all(len(self.matrices(layer)) == 4 for layer in weights.layers)
        )

    def build_stack(self, weights: Weights, parts: int, width: int) -> Callable[..., mx.array]:
        attention = self.attention_kernels
        assert attention is not None

        def stack(tokens: mx.array, where: mx.array, keys: list[mx.array], values: list[mx.array]) -> mx.array:
            rows = tokens.size
            staged = attention.stage(where, rows, (rows, width))
            x = self.embed(weights, tokens)
            layers = [self.halves(layer) for layer in weights.layers]
            for index, (layer, k, v) in enumerate(zip(layers, keys, values, strict=True)):
                qkv, output, gate_up, down = layer.qkv, layer.output, layer.gate_up, layer.down
                assert qkv and output and gate_up and down
                following = layers[index + 1].qkv if index + 1 < len(layers) else None
                y = attention.decode(
                    qkv(x), layer.norms, k, v, staged, rows, parts, output.layout(rows), output.weights[0]
                )
                x = output(y, x, is_laid_out=True, after=gate_up.weights[0])
                y = gate_up(x, give=down.layout(rows), after=down.weights[0])
                x = down(y, x, is_laid_out=True, after=following.weights[0] if following else None)
            return x

        compiled: Callable[..., mx.array] = mx.compile(stack)
        return compiled


def as_bfloat16(w: mx.array) -> mx.array:
    if not isinstance(w, QuantizedTensor):
        return w.astype(mx.bfloat16)
    if w.biases is None:
        return w
    scales, biases = w.scales.astype(mx.bfloat16), w.biases.astype(mx.bfloat16)
    return QuantizedTensor(w, scales, biases, bits=w.bits, group_size=w.group_size, mode=w.mode)
