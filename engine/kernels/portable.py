"""The portable column: MLX's own operations. Right everywhere, and the definition of right for the other columns.

Attention gathers each sequence's blocks into one run of keys before MLX's fused kernel: decode rows together,
padded to the longest and masked; each prefill chunk on its own.
"""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.batch import Batch, Chunk
from engine.cache import KVCache, LayerCache
from engine.config import ModelConfig
from engine.kernels.table import DecodeStep, Kernels, Tokens
from engine.lora import LoraRows, project
from engine.options import CacheDtype
from engine.quantized import QuantizedTensor
from engine.rotary import rotary
from engine.sampling import draw
from engine.weights import Layer, Weights


class PortableKernels:
    """MLX's operations in the shape of the table."""

    name = "portable"
    cache_dtype: CacheDtype

    def __init__(self, config: ModelConfig, block_size: int) -> None:
        self.config = config
        self.block_size = block_size
        self.rotary = rotary(config)
        self.scale = config.head_dim**-0.5
        self.is_cpu = mx.default_device().type == mx.DeviceType.cpu
        self.cache_dtype = "float32" if self.is_cpu else "bfloat16"

    def prepare(self, weights: Weights) -> Weights:
        """On a CPU, floats become float32: half precision is emulated there, a hundred times slower."""
        return weights.map(as_float32) if self.is_cpu else weights

    def warm_up(self, weights: Weights, cache: KVCache, max_rows: int, max_tokens: int) -> None:
        """MLX brings its kernels along, or compiles them on the way."""

    def embed(self, weights: Weights, tokens: mx.array) -> mx.array:
        table = weights.embed_tokens
        x = table.rows(tokens) if isinstance(table, QuantizedTensor) else table[tokens]
        return x.astype(weights.norm.dtype)

    def layers(self, x: mx.array, weights: Weights, cache: KVCache, batch: Batch, lora: LoraRows | None) -> mx.array:
        return one_by_one(self, x, weights, cache, batch, lora)

    def attention(
        self, x: mx.array, layer: Layer, index: int, cache: LayerCache, batch: Batch, lora: LoraRows | None
    ) -> mx.array:
        config, eps = self.config, self.config.rms_norm_eps
        h = mx.fast.rms_norm(x, layer.input_layernorm, eps)
        q = project("q_proj", layer, index, h, lora).reshape(-1, config.num_heads, config.head_dim)
        k = project("k_proj", layer, index, h, lora).reshape(-1, config.num_kv_heads, config.head_dim)
        v = project("v_proj", layer, index, h, lora).reshape(-1, config.num_kv_heads, config.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = mx.fast.rms_norm(q, layer.q_norm, eps)
            k = mx.fast.rms_norm(k, layer.k_norm, eps)
        q, k = self.rotary(q, batch.positions), self.rotary(k, batch.positions)
        cache.write(batch.slots, k, v)
        attended = self.attend(q, cache, batch).reshape(x.shape[0], -1)
        return x + project("o_proj", layer, index, attended, lora)

    def attend(self, q: mx.array, cache: LayerCache, batch: Batch) -> mx.array:
        """Each row of q, (T, heads, head_dim), against its own sequence's keys up to itself."""
        parts = []
        if batch.num_decode_rows:
            parts.append(self.attend_decode(q[: batch.num_decode_rows], cache, batch))
        for chunk in batch.chunks:
            parts.append(self.attend_chunk(q[chunk.start : chunk.start + chunk.length], cache, batch, chunk))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def attend_decode(self, q: mx.array, cache: LayerCache, batch: Batch) -> mx.array:
        rows, blocks = batch.num_decode_rows, -(-batch.max_decode_context // self.block_size)
        k, v = self.gather(cache, batch.block_tables[:rows, :blocks], q.dtype)
        distance = batch.positions[:rows, None] - mx.arange(k.shape[2])[None, :]  # (D, keys)
        mask = distance >= 0
        if self.config.sliding_window is not None:
            mask = mask & (distance < self.config.sliding_window)
        v = mx.where(mask[:, None, :, None], v, 0)  # what others left in a block may be NaN, and 0 * NaN is NaN
        mask = mask[:, None, None, :]
        return mx.fast.scaled_dot_product_attention(q[:, :, None, :], k, v, scale=self.scale, mask=mask).squeeze(2)

    def attend_chunk(self, q: mx.array, cache: LayerCache, batch: Batch, chunk: Chunk) -> mx.array:
        blocks = -(-chunk.context // self.block_size)
        k, v = self.gather(cache, batch.block_tables[chunk.sequence : chunk.sequence + 1, :blocks], q.dtype)
        k, v = k[:, :, : chunk.context], v[:, :, : chunk.context]
        window = self.config.sliding_window
        mask: mx.array | str = "causal"
        if window is not None and chunk.context > window:
            first = chunk.context - chunk.length
            distance = mx.arange(first, chunk.context)[:, None] - mx.arange(chunk.context)[None, :]
            mask = (distance >= 0) & (distance < window)
        q = q.swapaxes(0, 1)[None]  # (1, heads, rows, head_dim)
        attended = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.scale, mask=mask)
        return attended[0].swapaxes(0, 1)

    def gather(self, cache: LayerCache, tables: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Keys and values of whole block tables, each (S, kv_heads, blocks * block_size, head_dim)."""
        offsets = mx.arange(self.block_size, dtype=mx.int32)
        slots = (tables[:, :, None] * self.block_size + offsets).reshape(tables.shape[0], -1)
        k, v = cache.read(slots, dtype)
        return k.swapaxes(1, 2), v.swapaxes(1, 2)

    def feed_forward(self, x: mx.array, layer: Layer, index: int, lora: LoraRows | None) -> mx.array:
        h = mx.fast.rms_norm(x, layer.post_attention_layernorm, self.config.rms_norm_eps)
        gate = project("gate_proj", layer, index, h, lora)
        up = project("up_proj", layer, index, h, lora)
        return x + project("down_proj", layer, index, gate * mx.sigmoid(gate) * up, lora)

    def logits(self, x: mx.array, weights: Weights, rows: NDArray[np.int32]) -> mx.array:
        h = mx.fast.rms_norm(x[mx.array(rows)], weights.norm, self.config.rms_norm_eps)
        return (h @ weights.head.T).astype(mx.float32)

    def draw(self, logits: mx.array, knobs: NDArray[np.float32], *, is_greedy: bool, is_filtered: bool) -> mx.array:
        return draw(logits, mx.array(knobs), is_greedy=is_greedy, is_filtered=is_filtered)

    def decode(self, weights: Weights, cache: KVCache, step: DecodeStep) -> None:
        """MLX does it."""

    def read(self, tokens: mx.array | Tokens) -> list[int]:
        return [int(token) for token in np.array(tokens)] if isinstance(tokens, mx.array) else tokens.read()


def one_by_one(
    kernels: Kernels, x: mx.array, weights: Weights, cache: KVCache, batch: Batch, lora: LoraRows | None
) -> mx.array:
    """All layers, half by half."""
    for index, layer in enumerate(weights.layers):
        x = kernels.attention(x, layer, index, cache.layers[index], batch, lora)
        x = kernels.feed_forward(x, layer, index, lora)
    return x


def as_float32(w: mx.array) -> mx.array:
    """A tensor with floats, or scales, in float32; the scales of float formats are themselves packed, and stay."""
    if not isinstance(w, QuantizedTensor):
        return w.astype(mx.float32)
    if w.biases is None:
        return w
    scales, biases = w.scales.astype(mx.float32), w.biases.astype(mx.float32)
    return QuantizedTensor(w, scales, biases, bits=w.bits, group_size=w.group_size, mode=w.mode)
