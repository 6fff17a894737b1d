"""engine/kernels/cpu: right as `portable` is, to rounding."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from engine.kernels.cpu import missing_reason
from engine.kernels.portable import PortableKernels
from engine.lora import LoraRows
from engine.quantized import QuantizedTensor, dequantize, quantize
from engine.weights import LINEAR_MODULES
from tests.cpu_models import (
    Numbers,
    Run,
    floats,
    logits_by_halves,
    make_batch,
    make_cache,
    make_stack,
    make_tables,
    make_weights,
)

if missing_reason() is not None:
    pytest.skip("the CPU kernels are not built", allow_module_level=True)

from engine.kernels.cpu import _native
from engine.kernels.cpu.column import CpuKernels
from engine.kernels.cpu.packed import PackedTensor, pack

BLOCK = 16
MODELS = {
    "4 bits": Numbers(),
    "norms of heads": Numbers(has_head_norms=True, head_dim=64),
    "biases": Numbers(has_biases=True, bits=8, group=32),
    "one key head": Numbers(heads=6, kv_heads=1, head_dim=80),
    "as many key heads": Numbers(heads=3, kv_heads=3, head_dim=96),
    "window": Numbers(window=7),
    "float32, odd sizes": Numbers(bits=None, dtype=mx.float32, hidden=75, inner=101, heads=2, kv_heads=1, head_dim=26),
    "float16": Numbers(bits=None, hidden=52, head_dim=128),
    "bfloat16": Numbers(bits=None, dtype=mx.bfloat16, is_tied=False),
    "bfloat16 scales": Numbers(dtype=mx.bfloat16, group=32, bits=6),
    "groups of 64": Numbers(hidden=128, inner=192, head_dim=16, heads=8, group=64, bits=5),
}


@pytest.fixture(autouse=True)
def on_the_cpu():
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.mark.parametrize("numbers", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("cache_dtype", ["float32", "float16", "int8"])
def test_column_gives_the_logits_of_portable(numbers, cache_dtype):
    numbers = replace(numbers, num_layers=1)
    weights, tables = make_weights(numbers), make_tables(3, 300, BLOCK)
    stack = make_stack(numbers, [4, 1, 7])
    batches = [
        make_batch([Run(0, 0, 40), Run(1, 0, 3)], tables, BLOCK, numbers.vocabulary, [1, -1, 0]),
        make_batch([Run(1, 3, 1), Run(0, 40, 1), Run(2, 0, 19)], tables, BLOCK, numbers.vocabulary, [2, 0, -1]),
        make_batch([Run(0, 41, 250)], tables, BLOCK, numbers.vocabulary),
        make_batch([Run(0, 291, 1)], tables, BLOCK, numbers.vocabulary),
    ]
    logits = []
    for kernels in (PortableKernels(numbers.config, BLOCK), CpuKernels(numbers.config, BLOCK)):
        prepared, cache = kernels.prepare(weights), make_cache(numbers, tables, BLOCK, cache_dtype)
        logits.append(np.concatenate([logits_by_halves(kernels, prepared, cache, b, stack) for b in batches]))
    # A key that falls on the other side of a rounding in the cache moves the logits by that much.
    tolerance = {"float32": 2e-5, "float16": 2e-3, "int8": 5e-2}[cache_dtype]
    assert np.abs(logits[0] - logits[1]).max() < tolerance * np.abs(logits[0]).max()


@pytest.mark.parametrize("w", ["quantized", "floats"])
def test_gradient_of_activations_is_that_of_the_dequantized_product(w):
    rng = np.random.default_rng(0)
    matrix = quantize(floats(rng, 70, 96), 4, 32) if w == "quantized" else floats(rng, 70, 75)
    plain, packed = dequantize(matrix), pack(matrix)
    x = floats(rng, 2, 5, plain.shape[1])
    theirs = mx.grad(lambda x: (mx.sin(x @ plain.T) ** 2).sum())(x)
    ours = mx.grad(lambda x: (mx.sin(x @ packed.T) ** 2).sum())(x)
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    back = mx.grad(lambda y: (mx.sin(y @ packed) ** 2).sum())(x @ plain.T)
    assert np.allclose(back, mx.grad(lambda y: (mx.sin(y @ plain) ** 2).sum())(x @ plain.T), rtol=1e-4, atol=1e-3)


def test_packed_matrix_looks_up_its_rows():
    rng = np.random.default_rng(0)
    for w in (quantize(floats(rng, 45, 64), 3, 32), floats(rng, 45, 50)):
        indices = mx.array([44, 0, 7, 7])
        plain = dequantize(w)[indices] if isinstance(w, QuantizedTensor) else w[indices]
        assert np.allclose(pack(w).rows(indices), plain, atol=1e-6)


def test_packed_matrix_takes_no_more_memory_than_the_checkpoint():
    w = quantize(mx.random.normal((64, 640)), 4, 32)
    assert pack(w).num_bytes == w.num_bytes
    assert pack(w).logical_shape == (64, 640) and pack(w).T.logical_shape == (640, 64)


def test_activations_in_any_layout_are_read_right():
    rng = np.random.default_rng(0)
    w, x = floats(rng, 40, 60), floats(rng, 60, 9)
    assert np.allclose(x.T @ pack(w).T, x.T @ w.T, atol=1e-4)
    wide = floats(rng, 20, 120)[::2, ::2]
    assert np.allclose(wide @ pack(w).T, wide @ w.T, atol=1e-4)
    unaligned = floats(rng, 60 * 7 + 1)[1:].reshape(7, 60)  # a view: it begins four bytes after a boundary
    assert np.allclose(unaligned @ pack(w).T, unaligned @ w.T, atol=1e-4)


def test_no_rows_give_no_rows():
    w = pack(floats(np.random.default_rng(0), 40, 60))
    assert np.array(mx.zeros((0, 60)) @ w.T).shape == (0, 40)
    assert np.array(mx.zeros((0, 40)) @ w).shape == (0, 60)
    assert np.array(w.rows(mx.zeros((0,), mx.int32))).shape == (0, 60)
    assert np.array(_native.head(mx.zeros((3, 60)), mx.zeros((0,), mx.int32), mx.ones(60), 1e-5, w.matrix)).shape == (
        0,
        40,
    )


@pytest.mark.parametrize("vocabulary", [49_152, 151_936])
def test_heads_of_large_vocabularies(vocabulary):
    rng = np.random.default_rng(vocabulary)
    w, x = quantize(floats(rng, vocabulary, 64), 4, 32), floats(rng, 3, 64)
    logits = _native.head(x, mx.array([2, 0]), mx.ones(64), 0.0, pack(w).matrix)
    h = x / mx.sqrt((x**2).mean(axis=-1, keepdims=True))
    wanted = h[mx.array([2, 0])] @ dequantize(w).T
    assert np.allclose(logits, wanted, atol=1e-4)
    assert np.array_equal(_native.draw(logits, mx.zeros((2, 5)), True), np.array(logits).argmax(axis=1))


def test_formats_that_the_extension_lacks_go_the_portable_way():
    numbers = Numbers()
    weights = make_weights(numbers)
    weights = weights.map(lambda w: quantize(dequantize(w), 4, 32, "mxfp4") if isinstance(w, QuantizedTensor) else w)
    tables = make_tables(1, 30, BLOCK)
    batch, logits = make_batch([Run(0, 0, 20)], tables, BLOCK, numbers.vocabulary), []
    for kernels in (PortableKernels(numbers.config, BLOCK), CpuKernels(numbers.config, BLOCK)):
        prepared, cache = kernels.prepare(weights), make_cache(numbers, tables, BLOCK, "float32")
        logits.append(logits_by_halves(kernels, prepared, cache, batch))
    assert np.allclose(logits[0], logits[1], atol=1e-4)


def test_halves_with_bfloat16_keys_go_the_portable_way():
    numbers = Numbers()
    kernels, tables = CpuKernels(numbers.config, BLOCK), make_tables(1, 30, BLOCK)
    prepared, cache = kernels.prepare(make_weights(numbers)), make_cache(numbers, tables, BLOCK, "bfloat16")
    logits = logits_by_halves(kernels, prepared, cache, make_batch([Run(0, 0, 20)], tables, BLOCK, numbers.vocabulary))
    assert np.isfinite(logits).all()


def test_training_runs_through_packed_weights():
    numbers = Numbers()
    weights = make_weights(numbers)
    stack = make_stack(numbers, [4])
    portable, batch = PortableKernels(numbers.config, BLOCK), mx.zeros((6,), mx.int32)

    def loss(a: mx.array, layers) -> mx.array:
        module = stack.layers[1]["down_proj"]
        changed = type(stack)(({}, {"down_proj": type(module)(a, module.b, module.layout)}))
        return portable.feed_forward(x, layers[1], 1, LoraRows(changed, batch)).sum()

    x, a = floats(np.random.default_rng(0), 6, numbers.hidden), stack.layers[1]["down_proj"].a
    theirs = mx.grad(loss)(a, portable.prepare(weights).layers)
    ours = mx.grad(loss)(a, CpuKernels(numbers.config, BLOCK).prepare(weights).layers)
    assert np.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_taken_weights_are_emptied():
    numbers = Numbers()
    weights = make_weights(numbers)
    prepared = CpuKernels(numbers.config, BLOCK, takes_weights=True).prepare(weights)
    assert all(getattr(layer, name).weight.size <= 1 for layer in weights.layers for name in LINEAR_MODULES)
    assert isinstance(prepared.embed_tokens, PackedTensor)


def test_indices_out_of_range_are_refused():
    numbers = Numbers()
    packed = pack(make_weights(numbers).embed_tokens)
    with pytest.raises((RuntimeError, IndexError), match="token 100"):
        mx.eval(packed.rows(mx.array([numbers.vocabulary])))
    with pytest.raises(ValueError, match="rows of 96"):
        mx.zeros((2, 95)) @ packed.T


def test_adapters_of_another_model_are_refused():
    numbers, other = Numbers(), Numbers(inner=96)
    tables = make_tables(1, 30, BLOCK)
    kernels = CpuKernels(numbers.config, BLOCK)
    batch = make_batch([Run(0, 0, 3)], tables, BLOCK, numbers.vocabulary, [0])
    weights, cache = kernels.prepare(make_weights(numbers)), make_cache(numbers, tables, BLOCK, "float32")
    with pytest.raises(ValueError, match="adapters of another model"):
        logits_by_halves(kernels, weights, cache, batch, make_stack(other, [4]))


def test_matrices_without_numbers_are_refused():
    for shape in ((5, 0), (0, 5)):
        with pytest.raises(ValueError, match="matrix"):
            _native.pack_floats(mx.zeros(shape))
    with pytest.raises(ValueError, match="words"):
        _native.pack_quantized(mx.zeros((3, 0), mx.uint32), mx.zeros((3, 0)), mx.zeros((3, 0)), 4, 32)


def test_integers_are_no_activations():
    packed = pack(floats(np.random.default_rng(0), 40, 60))
    with pytest.raises(ValueError, match="floats were wanted"):
        mx.ones((2, 60), mx.int32) @ packed.T


@pytest.mark.parametrize(("wavelengths", "hidden"), [(16, -96), (3, 96)])
def test_a_decoder_whose_numbers_do_not_fit_is_refused(wavelengths, hidden):
    with pytest.raises(ValueError, match="wanted|not known"):
        _native.make_decoder(hidden, 160, 4, 2, 32, 1e-5, 0, BLOCK, mx.ones(wavelengths), 1.0)


def test_scales_of_another_type_are_refused():
    numbers, tables = Numbers(), make_tables(1, 30, BLOCK)
    kernels = CpuKernels(numbers.config, BLOCK)
    weights, cache = kernels.prepare(make_weights(numbers)), make_cache(numbers, tables, BLOCK, "int8")
    cache.layers[0].key_scales = cache.layers[0].key_scales.astype(mx.float16)
    with pytest.raises(ValueError, match="a scale for each"):
        logits_by_halves(kernels, weights, cache, make_batch([Run(0, 0, 3)], tables, BLOCK, numbers.vocabulary))
