"""Made-up models and batches for the tests of the CPU kernels. Knows shapes, not kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from engine.adapter import Adapter, LowRank
from engine.batch import Batch, Chunk
from engine.batch import Numbers as RowNumbers
from engine.cache import KVCache
from engine.config import ModelConfig
from engine.decoder import head
from engine.kernels.table import Kernels
from engine.lora import AdapterStack, LoraRows, stack_adapters
from engine.quantized import quantize
from engine.weights import LINEAR_MODULES, Layer, Linear, Weights


@dataclass(frozen=True)
class Numbers:
    """What a made-up model is like."""

    hidden: int = 96
    inner: int = 160
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocabulary: int = 100
    num_layers: int = 2
    bits: int | None = 4  # None: floats
    group: int = 32
    dtype: mx.Dtype = mx.float16
    has_head_norms: bool = False
    has_biases: bool = False
    window: int | None = None
    is_tied: bool = True

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(
            architecture="qwen3",
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_layers=self.num_layers,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            max_position=8192,
            tie_word_embeddings=self.is_tied,
            sliding_window=self.window,
        )


def make_weights(numbers: Numbers, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> mx.array:
        values: mx.array = floats(rng, rows, columns) * (1.5 / columns**0.5)
        if numbers.bits is None:
            return values.astype(numbers.dtype)
        made = quantize(values, numbers.bits, numbers.group)
        assert made.biases is not None
        made.scales, made.biases = made.scales.astype(numbers.dtype), made.biases.astype(numbers.dtype)
        return made

    def linear(rows: int, columns: int, is_biased: bool = False) -> Linear:
        return Linear(matrix(rows, columns), floats(rng, rows) / 4 if is_biased else None)

    def norm(size: int) -> mx.array:
        return 1 + floats(rng, size) / 8

    n, query, key = numbers, numbers.heads * numbers.head_dim, numbers.kv_heads * numbers.head_dim
    layers = tuple(
        Layer(
            input_layernorm=norm(n.hidden),
            q_proj=linear(query, n.hidden, n.has_biases),
            k_proj=linear(key, n.hidden, n.has_biases),
            v_proj=linear(key, n.hidden, n.has_biases),
            o_proj=linear(n.hidden, query),
            post_attention_layernorm=norm(n.hidden),
            gate_proj=linear(n.inner, n.hidden),
            up_proj=linear(n.inner, n.hidden),
            down_proj=linear(n.hidden, n.inner, n.has_biases),
            q_norm=norm(n.head_dim) if n.has_head_norms else None,
            k_norm=norm(n.head_dim) if n.has_head_norms else None,
        )
        for _ in range(n.num_layers)
    )
    lm_head = None if n.is_tied else matrix(n.vocabulary, n.hidden)
    return Weights(matrix(n.vocabulary, n.hidden), layers, norm(n.hidden), lm_head)


def floats(rng: np.random.Generator, *shape: int) -> mx.array:
    return mx.array(rng.standard_normal(shape, dtype=np.float32))


def make_stack(
    numbers: Numbers, ranks: Sequence[int], seed: int = 1, share: float = 0.8, dtype: mx.Dtype = mx.float32
) -> AdapterStack:
    """Adapters of several ranks, each on its own choice of that share of the modules."""
    rng = np.random.default_rng(seed)
    n, query, key = numbers, numbers.heads * numbers.head_dim, numbers.kv_heads * numbers.head_dim
    sizes = dict(
        zip(
            LINEAR_MODULES,
            [(n.hidden, query), (n.hidden, key), (n.hidden, key), (query, n.hidden)]
            + [(n.hidden, n.inner), (n.hidden, n.inner), (n.inner, n.hidden)],
            strict=True,
        )
    )
    adapters = []
    for rank in ranks:
        modules = {
            (layer, name): LowRank(
                (floats(rng, rows, rank) / rows**0.5).astype(dtype), floats(rng, rank, columns).astype(dtype), 0.7
            )
            for layer in range(n.num_layers)
            for name, (rows, columns) in sizes.items()
            if rng.random() < share
        }
        adapters.append(Adapter(modules, str(rank)))
    return stack_adapters(adapters, n.num_layers)


@dataclass(frozen=True)
class Run:
    """Some consecutive tokens of one sequence."""

    sequence: int
    first: int
    count: int


def make_batch(
    runs: Sequence[Run], tables: np.ndarray, block_size: int, vocabulary: int, adapters: Sequence[int] | None = None
) -> Batch:
    """The runs packed, in their order; a token is a function of its sequence and position."""
    sequence_of = np.concatenate([np.full(run.count, run.sequence, np.int32) for run in runs])
    positions = np.concatenate([np.arange(run.first, run.first + run.count, dtype=np.int32) for run in runs])
    starts = np.cumsum([0, *(run.count for run in runs)])
    return Batch(
        tokens=mx.array((positions * 7 + sequence_of * 13 + 3) % vocabulary, mx.int32),
        numbers=RowNumbers.of(
            positions=mx.array(positions),
            slots=mx.array(
                tables[sequence_of, positions // block_size] * block_size + positions % block_size, mx.int32
            ),
            sequence_of=mx.array(sequence_of),
            block_tables=mx.array(tables),
            output_rows=mx.arange(len(positions), dtype=mx.int32),
            adapter_of=None if adapters is None else mx.array(np.asarray(adapters, np.int32)[sequence_of]),
        ),
        num_decode_rows=0,
        max_decode_context=0,
        chunks=tuple(
            Chunk(int(start), run.count, run.first + run.count, run.sequence)
            for start, run in zip(starts[:-1], runs, strict=True)
        ),
    )


def make_tables(num_sequences: int, tokens: int, block_size: int, seed: int = 0) -> np.ndarray:
    """Blocks of the sequences, strewn over the cache."""
    width = -(-tokens // block_size)
    return np.random.default_rng(seed).permutation(num_sequences * width).astype(np.int32).reshape(num_sequences, width)


def make_cache(numbers: Numbers, tables: np.ndarray, block_size: int, dtype: str) -> KVCache:
    return KVCache(numbers.config, tables.size, block_size, dtype)  # type: ignore[arg-type]


def logits_by_halves(
    kernels: Kernels, weights: Weights, cache: KVCache, batch: Batch, stack: AdapterStack | None = None
) -> np.ndarray:
    """Logits of all rows, one operation a half."""
    lora = None if stack is None or batch.numbers.adapter_of is None else LoraRows(stack, batch.numbers.adapter_of)
    x = kernels.embed(weights, batch.tokens)
    for index, layer in enumerate(weights.layers):
        x = kernels.attention(x, layer, index, cache.layers[index], batch, lora)
        x = kernels.feed_forward(x, layer, index, lora)
    return np.array(head(weights, kernels, x, batch))
