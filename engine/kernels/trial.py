"""A kernel earns its place: a column is tried against `portable` on a small random model of the same kind.

Of the same kind: formats of weights, size and number of heads, biases, norms of queries and keys, rotation and window
are the model's own; the rest is small, so that a trial takes milliseconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from engine.adapter import Adapter, LowRank
from engine.batch import Batch, Chunk
from engine.cache import KVCache
from engine.config import ModelConfig
from engine.decoder import head, hidden
from engine.kernels.portable import PortableKernels
from engine.kernels.table import Kernels
from engine.lora import LoraRows, stack_adapters
from engine.quantized import QuantizedTensor, quantize
from engine.weights import Layer, Linear, Weights

HIDDEN, INNER, VOCABULARY = 128, 256, 160
PROMPT = 21


@dataclass(frozen=True, slots=True)
class Trial:
    """How far a column is from `portable`: relative to the largest logit, and in tokens drawn from equal logits."""

    logits_error: float
    num_wrong_tokens: int

    def passes(self, tolerance: float) -> bool:
        return self.logits_error <= tolerance and self.num_wrong_tokens == 0


def try_column(make: Callable[[ModelConfig], Kernels], config: ModelConfig, weights: Weights, block_size: int) -> Trial:
    """Run the column and `portable` through a prompt with an adapter, and a step of decoding two sequences."""
    small = replace(
        config,
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_layers=2,
        tie_word_embeddings=weights.lm_head is None,
        sliding_window=None if config.sliding_window is None else min(config.sliding_window, PROMPT // 2),
    )
    made = small_weights(small, weights, np.random.default_rng(0))
    column, portable = make(small), PortableKernels(small, block_size)
    got, want = run(column, small, made, block_size), run(portable, small, made, block_size)
    wrong = count_wrong_tokens(column, portable, want)
    return Trial(float(np.abs(got - want).max() / np.abs(want).max()), wrong)


def run(kernels: Kernels, config: ModelConfig, weights: Weights, block_size: int) -> np.ndarray:
    """The logits of all rows: a prompt of one sequence, the same of another with an adapter, a step of both."""
    prepared = kernels.prepare(weights)
    blocks = -(-(PROMPT + 1) // block_size)
    tables = np.array(range(2 * blocks)[::-1], np.int32).reshape(2, blocks)
    cache = KVCache(
        config, 2 * blocks, block_size, "float32" if kernels.cache_dtype == "float16" else kernels.cache_dtype
    )
    stack = stack_adapters([small_adapter(config, np.random.default_rng(1))], config.num_layers)
    logits = []
    for first, count in ((0, PROMPT), (PROMPT, 1)):
        batch = make_batch(tables, block_size, first, count)
        assert batch.adapter_of is not None
        x = hidden(prepared, kernels, cache, batch, LoraRows(stack, batch.adapter_of))
        logits.append(np.array(head(prepared, kernels, x, batch).astype(mx.float32)))
    return np.concatenate(logits)


def make_batch(tables: np.ndarray, block_size: int, first: int, count: int) -> Batch:
    """Rows [first, first + count) of two sequences; the second has the adapter."""
    positions = np.tile(np.arange(first, first + count, dtype=np.int32), 2)
    sequence_of = np.repeat(np.arange(2, dtype=np.int32), count)
    is_decode = count == 1
    return Batch(
        tokens=mx.array((positions * 7 + sequence_of * 3) % VOCABULARY, mx.int32),
        positions=mx.array(positions),
        slots=mx.array(tables[sequence_of, positions // block_size] * block_size + positions % block_size),
        sequence_of=mx.array(sequence_of),
        block_tables=mx.array(tables),
        output_rows=mx.arange(2 * count, dtype=mx.int32),
        adapter_of=mx.array(sequence_of - 1),
        num_decode_rows=2 if is_decode else 0,
        max_decode_context=first + 1 if is_decode else 0,
        chunks=() if is_decode else tuple(Chunk(i * count, count, count, i) for i in range(2)),
    )


def count_wrong_tokens(column: Kernels, portable: Kernels, logits: np.ndarray) -> int:
    """Tokens that the column draws otherwise, at several temperatures and cuts."""
    rows = mx.array(logits)
    uniforms = (np.arange(len(logits)) * 0.618 % 1).astype(np.float32)
    wrong = 0
    for settings in ((0.0, 0, 1.0, 0.0), (0.8, 0, 1.0, 0.0), (1.0, 20, 0.9, 0.0), (1.3, 0, 1.0, 0.05)):
        knobs = mx.array(np.array([(*settings, uniform) for uniform in uniforms], np.float32))
        drawn = [
            np.array(k.draw(rows, knobs, is_greedy=settings[0] == 0, is_filtered=True)) for k in (column, portable)
        ]
        wrong += int((drawn[0] != drawn[1]).sum())
    return wrong


def small_adapter(config: ModelConfig, rng: np.random.Generator) -> Adapter:
    """Rank 3 on a module of either half of the last layer."""
    last = config.num_layers - 1
    sizes = {"v_proj": (HIDDEN, config.num_kv_heads * config.head_dim), "down_proj": (INNER, HIDDEN)}
    modules = {
        (last, name): LowRank(floats(rng, rows, 3), floats(rng, 3, columns), 0.5)
        for name, (rows, columns) in sizes.items()
    }
    return Adapter(modules, "trial")


def small_weights(config: ModelConfig, like: Weights, rng: np.random.Generator) -> Weights:
    """Random tensors in the formats of a model's own."""
    pattern = like.layers[0]
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def linear(name: str, outputs: int, inputs: int) -> Linear:
        own: Linear = getattr(pattern, name)
        return Linear(matrix(rng, outputs, inputs, own.weight), None if own.bias is None else norm(rng, outputs))

    layers = tuple(
        Layer(
            input_layernorm=norm(rng, HIDDEN),
            q_proj=linear("q_proj", query, HIDDEN),
            k_proj=linear("k_proj", key, HIDDEN),
            v_proj=linear("v_proj", key, HIDDEN),
            o_proj=linear("o_proj", HIDDEN, query),
            post_attention_layernorm=norm(rng, HIDDEN),
            gate_proj=linear("gate_proj", INNER, HIDDEN),
            up_proj=linear("up_proj", INNER, HIDDEN),
            down_proj=linear("down_proj", HIDDEN, INNER),
            q_norm=None if pattern.q_norm is None else norm(rng, config.head_dim),
            k_norm=None if pattern.k_norm is None else norm(rng, config.head_dim),
        )
        for _ in range(config.num_layers)
    )
    return Weights(
        embed_tokens=matrix(rng, VOCABULARY, HIDDEN, like.embed_tokens),
        layers=layers,
        norm=norm(rng, HIDDEN),
        lm_head=None if like.lm_head is None else matrix(rng, VOCABULARY, HIDDEN, like.lm_head),
    )


def matrix(rng: np.random.Generator, rows: int, columns: int, like: mx.array) -> mx.array:
    """Random, in the format of another; floats where a small one does not divide into its groups."""
    values = floats(rng, rows, columns, scale=1.5 / columns**0.5)
    if not isinstance(like, QuantizedTensor):
        return values.astype(like.dtype)
    if columns % like.group_size:
        return values
    made = quantize(values, like.bits, like.group_size, like.mode)
    if made.biases is not None:
        made.scales, made.biases = made.scales.astype(like.scales.dtype), made.biases.astype(like.scales.dtype)
    return made


def floats(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> mx.array:
    return mx.array(rng.standard_normal(shape, dtype=np.float32) * np.float32(scale))


def norm(rng: np.random.Generator, size: int) -> mx.array:
    return 1 + floats(rng, size, scale=1 / 8)
