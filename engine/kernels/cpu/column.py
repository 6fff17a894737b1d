"""The CPU column: whole halves of layers, or all layers, as one operation of MLX.

Exact: a row's result has one order of operations whatever stands beside it, so a token's logits are the same bits
alone or in a batch, decoded or prefilled, in one chunk or ten, on one thread or many. (Bits differ between instruction
sets.) What the extension does not know, such as float formats of 4 bits, goes the portable way, operation by operation.
"""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.batch import Batch
from engine.cache import KVCache, LayerCache
from engine.config import ModelConfig
from engine.kernels.cpu import _native
from engine.kernels.cpu.adapters import NativeStack
from engine.kernels.cpu.packed import PackedTensor, forget, is_packable, pack
from engine.kernels.portable import PortableKernels, as_float32, one_by_one
from engine.kernels.table import DecodeStep, Tokens
from engine.lora import LoraRows
from engine.options import CacheDtype
from engine.rotary import rotary
from engine.weights import LINEAR_MODULES, Layer, Linear, Weights

MOST_QUERIES = 64  # of one key head, as the extension takes them


class CpuKernels:
    """The extension in the shape of the table. Built for one model: `prepare` it before use.

    `takes_weights`: the tensors given to `prepare` are emptied one by one, so that memory does not double.
    """

    name = "cpu"
    cache_dtype: CacheDtype = "float16"

    def __init__(
        self, config: ModelConfig, block_size: int, *, num_threads: int | None = None, takes_weights: bool = False
    ) -> None:
        self.config = config
        self.block_size = block_size
        self.takes_weights = takes_weights
        self.portable = PortableKernels(config, block_size)
        self._prepared: Weights | None = None
        self._decoder: _native.Decoder | None = None  # None: a matrix or the heads are not as it takes them
        if num_threads is not None:
            _native.set_num_threads(num_threads)

    def prepare(self, weights: Weights) -> Weights:
        """Matrices packed, the rest in float32."""
        self._prepared = weights.map(self.prepare_tensor)
        self._decoder = make_decoder(self.config, self.block_size, self._prepared)
        return self._prepared

    def prepare_tensor(self, w: mx.array) -> mx.array:
        if isinstance(w, PackedTensor):
            return w
        if not is_packable(w):
            return as_float32(w)
        packed = pack(w)
        if self.takes_weights:
            forget(w)
        return packed

    def warm_up(self, weights: Weights, cache: KVCache, max_rows: int, max_tokens: int) -> None:
        """Nothing is compiled here. The kernels read no slot before it is written, so none is filled with zeros."""
        if self._decoder is not None and all(
            self.knows(layer, index) and self.can_run(cache.layers[index]) for index, layer in enumerate(weights.layers)
        ):
            for held in cache.layers:
                held.keys = _native.unwritten_like(self._decoder, held.keys)
                held.values = _native.unwritten_like(self._decoder, held.values)

    def embed(self, weights: Weights, tokens: mx.array) -> mx.array:
        table = weights.embed_tokens
        return table.rows(tokens) if isinstance(table, PackedTensor) else self.portable.embed(weights, tokens)

    def layers(self, x: mx.array, weights: Weights, cache: KVCache, batch: Batch, lora: LoraRows | None) -> mx.array:
        """All layers as one operation: what the halves give in turn, without the sixty calls."""
        if weights is self._prepared and self.can_run(cache.layers[0]):
            return self.run(0, 2 * len(weights.layers), x, cache.layers, batch, lora)
        return one_by_one(self, x, weights, cache, batch, lora)

    def attention(
        self, x: mx.array, layer: Layer, index: int, cache: LayerCache, batch: Batch, lora: LoraRows | None
    ) -> mx.array:
        if self.knows(layer, index) and self.can_run(cache):
            return self.run(2 * index, 2 * index + 1, x, [cache], batch, lora)
        return self.portable.attention(x, layer, index, cache, batch, lora)

    def feed_forward(self, x: mx.array, layer: Layer, index: int, lora: LoraRows | None) -> mx.array:
        if self._decoder is None or not self.knows(layer, index):
            return self.portable.feed_forward(x, layer, index, lora)
        adapter_of, adapters = self.adapters(lora)
        return _native.run_feed_forward(self._decoder, index, x, adapter_of, adapters)

    def logits(self, x: mx.array, weights: Weights, rows: NDArray[np.int32]) -> mx.array:
        head = weights.head
        if isinstance(head, PackedTensor):
            return _native.head(x, mx.array(rows), weights.norm, self.config.rms_norm_eps, head.matrix)
        return self.portable.logits(x, weights, rows)

    def draw(self, logits: mx.array, knobs: NDArray[np.float32], *, is_greedy: bool, is_filtered: bool) -> mx.array:
        return _native.draw(logits, mx.array(knobs), is_greedy)

    def decode(self, weights: Weights, cache: KVCache, step: DecodeStep) -> None:
        """MLX does it, with the operations above."""

    def read(self, tokens: mx.array | Tokens) -> list[int]:
        return self.portable.read(tokens)

    def knows(self, layer: Layer, index: int) -> bool:
        return self._prepared is not None and self._prepared.layers[index] is layer

    def can_run(self, cache: LayerCache) -> bool:
        return self._decoder is not None and cache.keys.dtype != mx.bfloat16

    def run(
        self, first: int, last: int, x: mx.array, caches: list[LayerCache], batch: Batch, lora: LoraRows | None
    ) -> mx.array:
        """Half-layers [first, last), 2 i being layer i's attention. The caches get their successors."""
        assert self._decoder is not None
        adapter_of, adapters = self.adapters(lora)
        outputs = _native.run(
            self._decoder,
            first,
            last,
            x,
            batch.positions,
            batch.slots,
            batch.sequence_of,
            batch.block_tables,
            [array for cache in caches for array in in_order(cache)],
            adapter_of,
            adapters,
        )
        successors = iter(outputs[1:])
        for cache in caches:
            succeed(cache, [next(successors) for _ in in_order(cache)])
        return outputs[0]

    def adapters(self, lora: LoraRows | None) -> tuple[mx.array | None, _native.Adapters | None]:
        """The rows' choice and the stack in the extension's form, made once for a stack as it stands."""
        if lora is None:
            return None, None
        if not isinstance(lora.stack.native, NativeStack):
            lora.stack.native = NativeStack(lora.stack)
        return lora.adapter_of, lora.stack.native.adapters


def in_order(cache: LayerCache) -> list[mx.array]:
    """A layer's arrays as the extension takes them."""
    if cache.key_scales is None or cache.value_scales is None:
        return [cache.keys, cache.values]
    return [cache.keys, cache.key_scales, cache.values, cache.value_scales]


def succeed(cache: LayerCache, arrays: list[mx.array]) -> None:
    if len(arrays) == 2:
        cache.keys, cache.values = arrays
    else:
        cache.keys, cache.key_scales, cache.values, cache.value_scales = arrays


def make_decoder(config: ModelConfig, block_size: int, weights: Weights) -> _native.Decoder | None:
    """The model as one object of the extension, so that a call need not hand over hundreds of arrays."""
    if config.num_heads // config.num_kv_heads > MOST_QUERIES:
        return None
    linears = [[getattr(layer, name) for name in LINEAR_MODULES] for layer in weights.layers]
    if not all(isinstance(linear.weight, PackedTensor) for layer in linears for linear in layer):
        return None
    turning = rotary(config)
    decoder = _native.make_decoder(
        config.hidden_size,
        config.intermediate_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.rms_norm_eps,
        config.sliding_window or 0,
        block_size,
        turning.wavelengths,
        turning.magnitude,
    )
    for layer, modules in zip(weights.layers, linears, strict=True):
        decoder.add_layer(
            [matrix_of(linear) for linear in modules],
            [linear.bias for linear in modules],
            layer.input_layernorm,
            layer.post_attention_layernorm,
            layer.q_norm,
            layer.k_norm,
        )
    return decoder


def matrix_of(linear: Linear) -> _native.PackedMatrix:
    assert isinstance(linear.weight, PackedTensor)
    return linear.weight.matrix
