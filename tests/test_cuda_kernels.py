"""The CUDA column against float64 and the portable column, on random inputs, over the sizes that occur."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from engine.adapter import Adapter, LowRank
from engine.batch import Batch, Chunk, Numbers
from engine.cache import KVCache
from engine.config import ModelConfig, module_sizes
from engine.decoder import hidden
from engine.engine import Engine
from engine.event import TokenEvent
from engine.kernels.cuda import CudaKernels
from engine.kernels.cuda.adapters import RowsOnDevice, StackOnDevice, plan_tiles
from engine.kernels.cuda.matrices import Matrices
from engine.kernels.cuda.operands import Operands
from engine.kernels.portable import PortableKernels
from engine.lora import LoraRows, stack_adapters
from engine.options import EngineOptions
from engine.quantized import QuantizedTensor, dequantize, quantize
from engine.request import Request, Sampling
from engine.sampling import draw
from engine.weights import LINEAR_MODULES, Layer, Linear, Model, Weights

HAS_CUDA = hasattr(mx, "cuda") and mx.cuda.is_available()
pytestmark = pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device, or MLX built without CUDA")

FORMATS = [(4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128)]
ROWS = [1, 2, 3, 5, 8, 9, 16, 17, 32, 33, 64, 65, 100, 127, 128, 300]


def random(*shape: int, scale: float = 1.0) -> mx.array:
    return (mx.random.normal(shape) * scale).astype(mx.bfloat16)


def weight(out: int, inner: int, bits: int, group: int) -> QuantizedTensor:
    return quantize(random(out, inner, scale=inner**-0.5), bits, group)


def exact(x: mx.array) -> NDArray[np.float64]:
    if isinstance(x, QuantizedTensor):
        assert x.biases is not None
        wide = QuantizedTensor(
            x,
            x.scales.astype(mx.float32),
            x.biases.astype(mx.float32),
            bits=x.bits,
            group_size=x.group_size,
            mode=x.mode,
        )
        x = dequantize(wide)
    return np.array(x.astype(mx.float32)).astype(np.float64)


def error(found: mx.array, wanted: NDArray[np.float64]) -> float:
    difference = exact(found) - wanted
    assert np.isfinite(difference).all()
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted))


def normed(x: NDArray[np.float64], norm: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * norm


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / (1 + np.exp(-x))


# Products


@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_product_with_a_residual_is_near_float64(bits: int, group: int) -> None:
    for inner in (512, 1536):
        w = weight(256, inner, bits, group)
        matrices = Matrices(Operands((w,), {}))
        for rows in ROWS:
            x, added = random(rows, inner), random(rows, 256)
            assert error(matrices(x, added), exact(x) @ exact(w).T + exact(added)) < 5e-3, (inner, rows)


@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_three_products_with_a_norm_are_near_float64(bits: int, group: int) -> None:
    inner, norm = 1024, 1 + random(1024, scale=0.1)
    weights = tuple(weight(out, inner, bits, group) for out in (256, 128, 128))
    for bias in (None, random(512)):
        matrices = Matrices(Operands(weights, {}, bias, norm))
        for rows in ROWS:
            x = random(rows, inner, scale=3.0)
            wanted = normed(exact(x), exact(norm), 1e-6) @ np.concatenate([exact(w) for w in weights]).T
            wanted += 0 if bias is None else exact(bias)
            assert error(matrices(x), wanted) < 7e-3, rows


@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_gated_product_is_near_float64(bits: int, group: int) -> None:
    inner, norm = 1024, 1 + random(1024, scale=0.1)
    gate, up = weight(384, inner, bits, group), weight(384, inner, bits, group)
    for is_expanded in (False, True):
        matrices = Matrices(Operands((gate, up), {}, None, norm, is_gated=True))
        if is_expanded:
            matrices.expand()
        for rows in ROWS:
            x = random(rows, inner)
            h = normed(exact(x), exact(norm), 1e-6)
            assert error(matrices(x), silu(h @ exact(gate).T) * (h @ exact(up).T)) < 1e-2, rows


def test_head_takes_some_rows_and_gives_floats() -> None:
    w, norm = weight(1280, 512, 4, 64), 1 + random(512, scale=0.1)
    matrices = Matrices(Operands((w,), {}, None, norm, is_float=True))
    x = random(70, 512)
    for count in (1, 3, 8, 20, 66):
        at = np.random.default_rng(count).integers(0, 70, count).astype(np.int32)
        found = matrices(x, at=mx.array(at))
        assert found.dtype == mx.float32
        assert error(found, normed(exact(x)[at], exact(norm), 1e-6) @ exact(w).T) < 7e-3


def test_unwritten_outputs_do_not_exist() -> None:
    w = weight(512, 1024, 4, 64)
    matrices, poison = Matrices(Operands((w,), {})), mx.full((64, 512), float("nan"), mx.bfloat16)
    for rows in (3, 11, 40):
        mx.eval(poison + 1)
        x = random(rows, 1024)
        assert error(matrices(x), exact(x) @ exact(w).T) < 5e-3


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_stay_until_their_weights_are_used(bits: int) -> None:
    w = weight(256, 12288, bits, 64)  # so long a row that weights come four pieces ahead
    matrices = Matrices(Operands((w,), {}))
    for rows in (1, 2, 3, 4, 8):
        x, added = random(rows, 12288), random(rows, 256)
        wanted = exact(x) @ exact(w).T + exact(added)
        assert all(error(matrices(x, added), wanted) < 5e-3 for _ in range(20)), rows


# Layers


def config_of(head_dim: int, heads: int, kv_heads: int, window: int | None = None) -> ModelConfig:
    return ModelConfig(
        "qwen3", 1024, 512, 1024, 2, heads, kv_heads, head_dim, 1e-6, 1e6, 4096, False, sliding_window=window
    )


def model(config: ModelConfig, has_norms: bool = True) -> Weights:
    hidden, inner, d = config.hidden_size, config.intermediate_size, config.head_dim

    def linear(out: int, into: int) -> Linear:
        return Linear(weight(out, into, 4, 64))

    def layer() -> Layer:
        norms = [1 + random(d, scale=0.1) if has_norms else None for _ in range(2)]
        return Layer(
            1 + random(hidden, scale=0.1),
            linear(config.num_heads * d, hidden),
            linear(config.num_kv_heads * d, hidden),
            linear(config.num_kv_heads * d, hidden),
            linear(hidden, config.num_heads * d),
            1 + random(hidden, scale=0.1),
            linear(inner, hidden),
            linear(inner, hidden),
            linear(hidden, inner),
            *norms,
        )

    layers = tuple(layer() for _ in range(config.num_layers))
    return Weights(weight(config.vocab_size, hidden, 4, 64), layers, 1 + random(hidden, scale=0.1), None)


def batch_of(contexts: list[int], chunks: list[tuple[int, int]], size: int) -> Batch:
    """Decode rows with so many tokens (the new one counted), and chunks (new tokens, tokens after)."""
    lengths = contexts + [after for _, after in chunks]
    width = max(-(-length // size) for length in lengths) + 3
    tables, block = np.zeros((len(lengths), width), np.int32), 1
    order = np.random.default_rng(0).permutation(sum(-(-length // size) for length in lengths)) + 1
    for line, length in enumerate(lengths):
        count = -(-length // size)
        tables[line, :count] = order[block - 1 : block - 1 + count]
        block += count
    positions, sequences = [length - 1 for length in contexts], list(range(len(contexts)))
    placed = []
    for index, (new, after) in enumerate(chunks, start=len(contexts)):
        placed.append(Chunk(len(positions), new, after, index))
        positions += range(after - new, after)
        sequences += [index] * new
    at, of = np.array(positions), np.array(sequences)
    slots = tables[of, at // size] * size + at % size
    return Batch(
        mx.array(np.random.default_rng(1).integers(0, 1024, len(at)).astype(np.int32)),
        Numbers.of(at, slots, of, tables, np.arange(len(at)), None),
        len(contexts),
        max(contexts, default=0),
        tuple(placed),
    )


BATCHES = {
    "one": ([1], []),
    "few": ([5, 17, 300], []),
    "long": ([2000], []),
    "eight": ([16, 33, 1, 64, 65, 700, 31, 32], []),
    "many": (list(range(3, 600, 13)), []),
    "prompt": ([], [(200, 200)]),
    "chunks": ([], [(7, 300), (64, 64), (1, 1), (130, 900)]),
    "mixed": ([40, 500], [(33, 33), (100, 612)]),
}
SHAPES = [(128, 4, 1), (128, 8, 2), (64, 14, 2), (96, 8, 8), (64, 8, 1)]


def filled(config: ModelConfig, blocks: int, size: int, seed: int, dtype: str) -> KVCache:
    cache = KVCache(config, blocks, size, dtype)  # type: ignore[arg-type]
    mx.random.seed(seed)
    for layer in cache.layers:
        layer.keys = random(*layer.keys.shape).astype(layer.keys.dtype)
        layer.values = random(*layer.values.shape).astype(layer.values.dtype)
    mx.eval(cache.arrays())
    return cache


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", BATCHES)
def test_forward_pass_is_near_the_portable_one_in_float32(kind: str, shape: tuple[int, int, int]) -> None:
    for window, size, has_norms in ((None, 16, True), (48, 32, False)):
        config = config_of(*shape, window)
        mx.random.seed(7)
        weights = model(config, has_norms)
        batch = batch_of(*BATCHES[kind], size)
        blocks = int(batch.numbers.block_tables.max()) + 2
        wide = replace(weights.map(lambda w: dequantize(w).astype(mx.float32)))
        ours, theirs = CudaKernels(config, size, expand="never"), PortableKernels(config, size)
        cache, reference = filled(config, blocks, size, 3, "bfloat16"), filled(config, blocks, size, 3, "float32")
        prepared = ours.prepare(weights)
        x = hidden(prepared, ours, cache, batch)
        y = theirs.embed(wide, batch.tokens)
        for index, layer in enumerate(wide.layers):
            y = theirs.attention(y, layer, index, reference.layers[index], batch, None)
            y = theirs.feed_forward(y, layer, index, None)
        assert error(x, exact(y)) < 1.5e-2
        for a, b in zip(cache.arrays(), reference.arrays(), strict=True):
            assert error(a, exact(b)) < 1.5e-2
        mx.eval(theirs.embed(wide, batch.tokens))
        assert error(ours.embed(prepared, batch.tokens), exact(theirs.embed(wide, batch.tokens))) < 5e-3


RANKS = (16, 8, 3, 40)


def adapters_of(config: ModelConfig, names: tuple[str, ...] = LINEAR_MODULES) -> list[Adapter]:
    """Of several ranks; the last one knows fewer modules than the others."""
    sizes = module_sizes(config)
    adapters = []
    for number, rank in enumerate(RANKS):
        known = [name for name in names if number < len(RANKS) - 1 or name in ("q_proj", "v_proj", "up_proj")]
        modules = {
            (layer, name): LowRank(
                random(sizes[name][0], rank, scale=sizes[name][0] ** -0.5), random(rank, sizes[name][1]), 0.5 + number
            )
            for layer in range(config.num_layers)
            for name in known
        }
        adapters.append(Adapter(modules, str(number)))
    return adapters


def test_tiles_hold_every_row_once_with_those_of_its_adapter() -> None:
    for rows in (1, 7, 8, 9, 64, 300):
        adapter_of = np.random.default_rng(rows).integers(-1, 5, rows).astype(np.int32)
        tiles = plan_tiles(adapter_of)
        found = [(line[0], row) for line in tiles for row in line[2 : 2 + line[1]]]
        assert sorted(row for _, row in found) == list(range(rows))
        assert all(adapter_of[row] == adapter for adapter, row in found)


ADAPTED = {
    "normed": (("q_proj", "k_proj", "v_proj"), (1024, 256, 256), 512, True, False),
    "plain": (("o_proj",), (512,), 1024, False, False),
    "wide": (("down_proj",), (512,), 1024, False, False),
    "gated": (("gate_proj", "up_proj"), (1024, 1024), 512, True, True),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ADAPTED)
def test_product_with_what_adapters_add_is_near_float64(kind: str, bits: int) -> None:
    names, widths, inner, has_norm, is_gated = ADAPTED[kind]
    config = config_of(128, 8, 2)
    stacked = stack_adapters(adapters_of(config), config.num_layers)
    stack, norm = StackOnDevice(stacked), 1 + random(inner, scale=0.1)
    weights = tuple(weight(width, inner, bits, 64) for width in widths)
    matrices = Matrices(Operands(weights, {}, None, norm if has_norm else None, is_gated=is_gated))
    for rows in (1, 2, 5, 8, 9, 16, 33, 64, 65, 200):
        adapter_of = np.random.default_rng(rows).integers(-1, len(RANKS), rows).astype(np.int32)
        x, added = random(rows, inner, scale=2.0), None if is_gated else random(rows, sum(widths))
        tiled = RowsOnDevice(stack, mx.array(plan_tiles(adapter_of)) + 0)
        found = matrices(x, added, adapted=tiled.of(1, names))
        h = normed(exact(x), exact(norm), 1e-6) if has_norm else exact(x)
        wanted = h @ np.concatenate([exact(w) for w in weights]).T + (0 if added is None else exact(added))
        for row, adapter in enumerate(adapter_of):
            column = 0
            for name, width in zip(names, widths, strict=True):
                pair = None if adapter < 0 else stacked.take(int(adapter)).get((1, name))
                if pair is not None:
                    wanted[row, column : column + width] += h[row] @ exact(pair.a) @ exact(pair.b) * pair.scale
                column += width
        if is_gated:
            wanted = silu(wanted[:, : widths[0]]) * wanted[:, widths[0] :]
        assert error(found, wanted) < 1e-2, rows


@pytest.mark.parametrize("kind", BATCHES)
def test_forward_pass_with_adapters_is_near_the_portable_one_in_float32(kind: str) -> None:
    config = config_of(128, 8, 2)
    mx.random.seed(11)
    weights = model(config)
    batch = batch_of(*BATCHES[kind], 16)
    for names in (LINEAR_MODULES, ("v_proj", "down_proj")):
        adapter_of = np.random.default_rng(2).integers(-1, len(RANKS), batch.num_rows).astype(np.int32)
        lora = LoraRows(stack_adapters(adapters_of(config, names), config.num_layers), adapter_of)
        blocks = int(batch.numbers.block_tables.max()) + 2
        wide = replace(weights.map(lambda w: dequantize(w).astype(mx.float32)))
        ours, theirs = CudaKernels(config, 16, expand="never"), PortableKernels(config, 16)
        cache, reference = filled(config, blocks, 16, 3, "bfloat16"), filled(config, blocks, 16, 3, "float32")
        x = hidden(ours.prepare(weights), ours, cache, batch, lora)
        assert error(x, exact(hidden(wide, theirs, reference, batch, lora))) < 2e-2


def test_half_steps_do_what_the_whole_stack_does() -> None:
    config = config_of(128, 8, 2)
    weights, batch = model(config), batch_of([40, 500, 20], [], 16)
    kernels = CudaKernels(config, 16, expand="never")
    prepared = kernels.prepare(weights)
    first, second = filled(config, 64, 16, 3, "bfloat16"), filled(config, 64, 16, 3, "bfloat16")
    whole = hidden(prepared, kernels, first, batch)
    x = kernels.embed(prepared, batch.tokens)
    for index, layer in enumerate(prepared.layers):
        x = kernels.attention(x, layer, index, second.layers[index], batch, None)
        x = kernels.feed_forward(x, layer, index, None)
    assert mx.array_equal(whole, x).item()
    for a, b in zip(first.arrays(), second.arrays(), strict=True):
        assert mx.array_equal(a, b).item()


def test_a_step_repeated_gives_the_same_bits() -> None:
    config = config_of(128, 8, 2)
    weights, batch = model(config), batch_of([40, 500, 20, 900], [(70, 200)], 16)
    kernels = CudaKernels(config, 16, expand="never")
    prepared = kernels.prepare(weights)
    results = []
    for _ in range(3):
        results.append(hidden(prepared, kernels, filled(config, 200, 16, 3, "bfloat16"), batch))
        mx.eval(results[-1])
    assert all(mx.array_equal(results[0], other).item() for other in results[1:])


def tokens_of(engine: Engine, asked: list[Request]) -> dict[str, list[tuple[int, int]]]:
    """What requests get that join one after another, every other step."""
    tokens: dict[str, list[tuple[int, int]]] = {request.id: [] for request in asked}
    waiting, step = list(asked), 0
    while waiting or engine.has_work:
        if waiting and step % 2 == 0:
            engine.add(waiting.pop(0))
        for event in engine.step():
            if isinstance(event, TokenEvent):
                tokens[event.request_id].append((event.choice, event.token))
        step += 1
    return tokens


SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=1.0, seed=3),
    Sampling(temperature=0.7, seed=4, top_p=0.8, top_k=40),
    Sampling(temperature=1.0, seed=5, n=3),
    Sampling(temperature=0.0, logprobs=2),
    Sampling(temperature=0.0, presence_penalty=0.5),
)


@pytest.mark.parametrize("kinds", [1, 3, 6])
@pytest.mark.parametrize("streams", [1, 6, 20, 70])
def test_whole_steps_draw_what_launches_by_mlx_draw(streams: int, kinds: int) -> None:
    config = config_of(128, 8, 2)
    mx.random.seed(13)
    made, rng = Model(config, model(config), "made up"), np.random.default_rng(streams)
    asked = [
        Request(
            str(index),
            tuple(rng.integers(10, 1000, rng.integers(1, 90)).tolist()),
            replace(SAMPLINGS[index % kinds], max_tokens=int(rng.integers(3, 40)), ignore_eos=True),
            adapter=str(index % 4) if index % 3 else None,
        )
        for index in range(streams)
    ]
    adapters, found = adapters_of(config), []
    for is_whole in (True, False):
        kernels = CudaKernels(config, 16, expand="never")
        options = EngineOptions(max_sequences=80, max_batch_tokens=128, cache_bytes=1 << 26, max_adapter_bytes=1 << 28)
        engine = Engine(made, kernels, options)
        assert kernels.steps(engine.runner.weights, engine.runner.cache) is not None
        if not is_whole:
            kernels.decode = lambda *_: None  # type: ignore[method-assign]
        for adapter in adapters:
            engine.attach(adapter.version, adapter)
        found.append(tokens_of(engine, asked))
    assert found[0] == found[1]


# Draws


def test_greedy_draw_takes_the_first_of_the_largest() -> None:
    kernels = CudaKernels(config_of(128, 8, 2), 16, expand="never")
    logits = mx.round(mx.random.normal((9, 151936)) * 4)
    found = kernels.draw(logits, np.zeros((9, 5), np.float32), is_greedy=True, is_filtered=False)
    assert mx.array_equal(found, mx.argmax(logits, axis=-1).astype(mx.int32)).item()


LIMITS = [(0, 1.0, 0.0), (0, 1.0, 0.05), (50, 1.0, 0.0), (0, 0.9, 0.0), (40, 0.8, 0.01)]


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), LIMITS)
def test_draws_are_the_portable_ones(top_k: int, top_p: float, min_p: float) -> None:
    kernels = CudaKernels(config_of(128, 8, 2), 16, expand="never")
    rows = 64
    for scale, temperature in ((1.0, 1.0), (4.0, 0.7), (4.0, 0.0)):
        logits = mx.random.normal((rows, 32000)) * scale
        knobs = np.zeros((rows, 5), np.float32)
        knobs[:] = temperature, top_k, top_p, min_p, 0
        knobs[:, 4] = np.random.default_rng(5).random(rows)
        is_filtered = bool(top_k or top_p < 1)
        found = np.array(kernels.draw(logits, knobs, is_greedy=False, is_filtered=is_filtered))
        wanted = np.array(draw(logits, mx.array(knobs), is_greedy=False, is_filtered=is_filtered))
        assert (found != wanted).sum() <= 2  # rounding of the sums may move a boundary past the drawn number
