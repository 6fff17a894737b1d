"""The forward pass: embedding, layers, head. What a layer does is the kernels' affair."""

import mlx.core as mx

from engine.batch import Batch
from engine.cache import KVCache
from engine.kernels.table import Kernels
from engine.lora import LoraRows
from engine.weights import Weights


def hidden(weights: Weights, kernels: Kernels, cache: KVCache, batch: Batch, lora: LoraRows | None = None) -> mx.array:
    """What the last layer gives, (T, hidden); keys and values of all rows are in the cache after."""
    return kernels.layers(kernels.embed(weights, batch.tokens), weights, cache, batch, lora)


def head(weights: Weights, kernels: Kernels, x: mx.array, batch: Batch) -> mx.array:
    """The logits of the batch's output rows, (R, vocabulary)."""
    return kernels.logits(x, weights, batch.numbers.output_rows)
