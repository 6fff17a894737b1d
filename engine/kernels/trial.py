"""A kernel earns its place: a column is tried against `portable` on a small random model of the same kind.

Of the same kind: formats of weights (of the first layer, and of one in the middle, for some models give the ends more
bits), size and number of heads, biases, norms of queries and keys, rotation and window are the model's own; the rest is
small, so that a trial takes milliseconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from engine.adapter import Adapter, LowRank
from engine.batch import Batch, Chunk, Numbers
from engine.cache import KVCache
from engine.config import ModelConfig, module_sizes
from engine.decoder import head
from engine.decoder import hidden as run_layers
from engine.kernels.portable import PortableKernels, as_float32
from engine.kernels.table import Kernels
from engine.lora import LoraRows, stack_adapters
from engine.options import CacheDtype
from engine.quantized import QuantizedTensor, dequantize, quantize
from engine.weights import Layer, Linear, Weights

PROMPT = 21
RANKS = (2, 3)  # of the adapters: the second one is in use, so that where it begins matters
ROUNDED_TOLERANCE = 0.2  # int8 was up to 0.06 away, and a wrong kernel is as far as logits


@dataclass(frozen=True, slots=True)
class Size:
    """What of a trial's model is not the model's own."""

    hidden: int
    inner: int
    vocabulary: int


SMALL = Size(128, 256, 160)
WIDE = Size(512, 1024, 256)  # for kernels that take no narrower matrices


@dataclass(frozen=True, slots=True)
class Trial:
    """How far a column is from `portable`: relative to the largest logit, and in tokens drawn from equal logits."""

    logits_error: float
    num_wrong_tokens: int
    rounded_error: float = 0.0  # of logits, with keys and values in a type that rounds them

    def passes(self, tolerance: float) -> bool:
        is_near = self.logits_error <= tolerance and self.rounded_error <= ROUNDED_TOLERANCE
        return is_near and self.num_wrong_tokens == 0


def try_column(
    make: Callable[[ModelConfig], Kernels],
    config: ModelConfig,
    weights: Weights,
    block_size: int,
    size: Size,
    *,
    is_reference_wide: bool = False,
    rounded: Sequence[CacheDtype] = (),
) -> Trial:
    """Run the column and `portable` through two prompts and two steps of decoding, with an adapter and without.

    `is_reference_wide`: `portable` is given the weights as the column prepared them, but in float32, so that only the
    column's own rounding counts, and no kernel of MLX's for a format that it may not have.
    `rounded`: what the column may keep keys and values in that rounds them; it is run with each.
    """
    small = replace(
        config,
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_layers=2,
        tie_word_embeddings=weights.lm_head is None,
        sliding_window=None if config.sliding_window is None else min(config.sliding_window, PROMPT // 2),
    )
    made = small_weights(small, weights, np.random.default_rng(0))
    column, portable = make(small), PortableKernels(small, block_size)
    known = column.prepare(made).map(widened) if is_reference_wide else made
    exact: CacheDtype = "float32" if column.cache_dtype == "float16" else column.cache_dtype
    want = run(portable, small, known, block_size, portable.cache_dtype)

    def error(cache_dtype: CacheDtype) -> float:
        got = run(column, small, made, block_size, cache_dtype)
        return float(np.abs(got - want).max() / np.abs(want).max())

    wrong = count_wrong_tokens(column, portable, want)
    return Trial(error(exact), wrong, float(np.max([0.0, *map(error, rounded)])))


def widened(w: mx.array) -> mx.array:
    wide = as_float32(w)
    return dequantize(wide) if isinstance(wide, QuantizedTensor) else wide


def run(
    kernels: Kernels, config: ModelConfig, weights: Weights, block_size: int, cache_dtype: CacheDtype
) -> np.ndarray:
    """The logits of all rows: two prompts, one of them with an adapter; a step of both; and one without the adapter."""
    prepared = kernels.prepare(weights)
    blocks = -(-(PROMPT + 2) // block_size)
    tables = np.array(range(2 * blocks)[::-1], np.int32).reshape(2, blocks)
    cache = KVCache(config, 2 * blocks, block_size, cache_dtype)
    stack = stack_adapters([small_adapter(config, rank) for rank in RANKS], config.num_layers)
    logits = []
    for first, count, has_adapter in ((0, PROMPT, True), (PROMPT, 1, True), (PROMPT + 1, 1, False)):
        batch = make_batch(tables, block_size, first, count, config.vocab_size)
        assert batch.numbers.adapter_of is not None
        lora = LoraRows(stack, batch.numbers.adapter_of) if has_adapter else None
        x = run_layers(prepared, kernels, cache, batch, lora)
        logits.append(np.array(head(prepared, kernels, x, batch).astype(mx.float32)))
    return np.concatenate(logits)


def make_batch(tables: np.ndarray, block_size: int, first: int, count: int, vocabulary: int) -> Batch:
    """Rows [first, first + count) of two sequences; the second has the second adapter."""
    positions = np.tile(np.arange(first, first + count, dtype=np.int32), 2)
    sequence_of = np.repeat(np.arange(2, dtype=np.int32), count)
    is_decode = count == 1
    return Batch(
        tokens=mx.array((positions * 7 + sequence_of * 3) % vocabulary, mx.int32),
        numbers=Numbers.of(
            positions=positions,
            slots=tables[sequence_of, positions // block_size] * block_size + positions % block_size,
            sequence_of=sequence_of,
            block_tables=tables,
            output_rows=np.arange(2 * count, dtype=np.int32),
            adapter_of=2 * sequence_of - 1,
        ),
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
        knobs = np.array([(*settings, uniform) for uniform in uniforms], np.float32)
        drawn = [
            np.array(k.draw(rows, knobs, is_greedy=settings[0] == 0, is_filtered=True)) for k in (column, portable)
        ]
        wrong += int((drawn[0] != drawn[1]).sum())
    return wrong


def small_adapter(config: ModelConfig, rank: int) -> Adapter:
    """On every module of the last layer."""
    rng, last = np.random.default_rng(rank), config.num_layers - 1
    modules = {
        (last, name): LowRank(floats(rng, inputs, rank, scale=inputs**-0.5), floats(rng, rank, outputs), 0.5)
        for name, (inputs, outputs) in module_sizes(config).items()
    }
    return Adapter(modules, f"rank {rank}")


def small_weights(config: ModelConfig, like: Weights, rng: np.random.Generator) -> Weights:
    """Random tensors in the formats of a model's own."""
    hidden = config.hidden_size

    def linear(own: Linear, inputs: int, outputs: int) -> Linear:
        return Linear(matrix(rng, outputs, inputs, own.weight), None if own.bias is None else norm(rng, outputs))

    layers = tuple(
        Layer(
            **{name: linear(getattr(pattern, name), *size) for name, size in module_sizes(config).items()},
            input_layernorm=norm(rng, hidden),
            post_attention_layernorm=norm(rng, hidden),
            q_norm=None if pattern.q_norm is None else norm(rng, config.head_dim),
            k_norm=None if pattern.k_norm is None else norm(rng, config.head_dim),
        )
        for pattern in (like.layers[0], like.layers[len(like.layers) // 2])
    )
    return Weights(
        embed_tokens=matrix(rng, config.vocab_size, hidden, like.embed_tokens),
        layers=layers,
        norm=norm(rng, hidden),
        lm_head=None if like.lm_head is None else matrix(rng, config.vocab_size, hidden, like.lm_head),
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
