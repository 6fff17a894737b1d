"""engine/kernels/cpu: every primitive at most as far from float64 as MLX's float32 path."""

from functools import cache

import mlx.core as mx
import numpy as np
import pytest

from engine.kernels.cpu import missing_reason
from engine.kernels.portable import PortableKernels
from engine.lora import LoraRows
from engine.quantized import QuantizedTensor, quantize
from engine.rotary import rotary
from engine.weights import Layer, Linear
from tests.cpu_models import Numbers, Run, floats, make_batch, make_cache, make_stack, make_tables, make_weights

if missing_reason() is not None:
    pytest.skip("the CPU kernels are not built", allow_module_level=True)

from engine.kernels.cpu import _native
from engine.kernels.cpu.column import CpuKernels
from engine.kernels.cpu.packed import pack

BLOCK, ROWS = 16, 5
FORMATS = [(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
COLUMNS = (576, 1536, 4096)  # of SmolLM2 and of Qwen3
ROUNDING = 2e-7  # two roundings of a float32: where theirs is nearer than that, it is by luck

formats = pytest.mark.parametrize(("bits", "group"), FORMATS)


@pytest.fixture(autouse=True)
def on_the_cpu():
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)
    _native.use_instruction_set("best")


def exact(a: mx.array) -> np.ndarray:
    """The numbers that an array stands for, in float64."""
    if not isinstance(a, QuantizedTensor):
        return np.array(a.astype(mx.float32)).astype(np.float64)
    ones = mx.ones(a.scales.shape)
    values = mx.dequantize(a, ones, mx.zeros_like(ones), a.group_size, a.bits)
    scales, biases = (np.repeat(exact(part), a.group_size, axis=1) for part in (a.scales, a.biases))
    return exact(values) * scales + biases


def error(got: mx.array, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(np.array(got) - wanted) / np.linalg.norm(wanted))


def assert_no_farther(ours: mx.array, theirs: mx.array, wanted: np.ndarray) -> None:
    assert error(ours, wanted) <= max(error(theirs, wanted), ROUNDING)


@formats
@pytest.mark.parametrize("columns", COLUMNS)
def test_quantized_linear(bits, group, columns):
    columns -= columns % group
    rng = np.random.default_rng(bits * group)
    w, x = quantize(floats(rng, 40, columns), bits, group), floats(rng, ROWS, columns)
    assert_no_farther(x @ pack(w).T, x @ w.T, exact(x) @ exact(w).T)


@formats
@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "neon", "generic"])
def test_quantized_linear_of_every_instruction_set(bits, group, instruction_set):
    try:
        _native.use_instruction_set(instruction_set)
    except ValueError:
        pytest.skip(f"no {instruction_set} here")
    rng = np.random.default_rng(bits * group)
    w, x = quantize(floats(rng, 70, 640), bits, group), floats(rng, 29, 640)
    assert_no_farther(x @ pack(w).T, x @ w.T, exact(x) @ exact(w).T)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5), (25, 577, 33), (1, 1000, 64), (50, 31, 129)])
def test_linear_of_floats_of_any_size(dtype, shape):
    rows, columns, outputs = shape
    rng = np.random.default_rng(columns)
    w, x = floats(rng, outputs, columns).astype(dtype), floats(rng, rows, columns)
    assert_no_farther(x @ pack(w).T, x @ w.astype(mx.float32).T, exact(x) @ exact(w).T)


@formats
def test_gradient_of_activations(bits, group):
    rng = np.random.default_rng(bits * group)
    w, dy = quantize(floats(rng, 576, 640), bits, group), floats(rng, ROWS, 576)
    packed, x = pack(w), floats(rng, ROWS, 640)
    ours = mx.vjp(lambda x: x @ packed.T, [x], [dy])[1][0]
    theirs = mx.vjp(lambda x: x @ w.T, [x], [dy])[1][0]
    assert_no_farther(ours, theirs, exact(dy) @ exact(w))


@formats
def test_rows_of_the_embedding(bits, group):
    w, tokens = quantize(floats(np.random.default_rng(bits), 45, 640), bits, group), mx.array([44, 0, 7, 7])
    assert_no_farther(pack(w).rows(tokens), w.rows(tokens), exact(w)[np.array(tokens)])


@cache
def half_world(bits, group):
    """A layer with all that Qwen2 and Qwen3 have, two adapters, and a batch of a prompt's rows and another's first."""
    numbers = Numbers(
        hidden=384, inner=640, heads=6, kv_heads=2, head_dim=64, num_layers=1, bits=bits, group=group,
        dtype=mx.float32, has_biases=True, has_head_norms=True,
    )  # fmt: skip
    tables = make_tables(2, 30, BLOCK)
    batch = make_batch([Run(0, 0, ROWS), Run(1, 0, 1)], tables, BLOCK, numbers.vocabulary, [1, -1])
    stack = make_stack(numbers, [4, 2])
    x = floats(np.random.default_rng(bits), ROWS + 1, numbers.hidden)
    columns = [PortableKernels(numbers.config, BLOCK), CpuKernels(numbers.config, BLOCK)]
    return numbers, make_weights(numbers), tables, batch, stack, x, columns


@formats
def test_attention_half(bits, group):
    numbers, weights, tables, batch, stack, x, columns = half_world(bits, group)
    found = []
    for kernels in columns:
        layer, keys = kernels.prepare(weights).layers[0], make_cache(numbers, tables, BLOCK, "float32")
        found.append(
            kernels.attention(x, layer, 0, keys.layers[0], batch, LoraRows(stack, batch.numbers.adapter_of)) - x
        )
    wanted = exact_attention(numbers, weights.layers[0], x, batch, LoraRows(stack, batch.numbers.adapter_of))
    assert_no_farther(found[1], found[0], wanted)


@formats
def test_feed_forward_half(bits, group):
    _, weights, _, batch, stack, x, columns = half_world(bits, group)
    lora = LoraRows(stack, batch.numbers.adapter_of)
    found = [kernels.feed_forward(x, kernels.prepare(weights).layers[0], 0, lora) - x for kernels in columns]
    assert_no_farther(found[1], found[0], exact_feed_forward(weights.layers[0], x, lora))


@formats
def test_head(bits, group):
    numbers, weights, _, _, _, x, columns = half_world(bits, group)
    rows = mx.array([ROWS, 0, 2])
    found = [kernels.logits(x, kernels.prepare(weights), rows) for kernels in columns]
    wanted = exact_norm(exact(x)[np.array(rows)], weights.norm) @ exact(weights.head).T
    assert_no_farther(found[1], found[0], wanted)


def exact_norm(x: np.ndarray, weight: mx.array) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * exact(weight)


def exact_linear(name: str, layer: Layer, x: np.ndarray, lora: LoraRows) -> np.ndarray:
    linear: Linear = getattr(layer, name)
    y = x @ exact(linear.weight).T + (0 if linear.bias is None else exact(linear.bias))
    stacked = lora.stack.layers[0].get(name)
    if stacked is None:
        return y
    return y + (x @ exact(stacked.a).T * exact(lora.mask(stacked.layout))) @ exact(stacked.b)


def exact_attention(numbers: Numbers, layer: Layer, x: mx.array, batch, lora: LoraRows) -> np.ndarray:
    """What the half adds to x. Rows see those of their own sequence up to themselves."""
    h = exact_norm(exact(x), layer.input_layernorm)
    q, k, v = (
        exact_linear(name, layer, h, lora).reshape(len(h), -1, numbers.head_dim)
        for name in ("q_proj", "k_proj", "v_proj")
    )
    angles = (exact(batch.positions)[:, None] / exact(rotary(numbers.config).wavelengths))[:, None]

    def turned(heads: np.ndarray) -> np.ndarray:
        left, right = np.split(heads, 2, axis=-1)
        cosines, sines = np.cos(angles), np.sin(angles)
        return np.concatenate([left * cosines - right * sines, left * sines + right * cosines], axis=-1)

    q, k = turned(exact_norm(q, layer.q_norm)), turned(exact_norm(k, layer.k_norm))
    k, v = (np.repeat(each, numbers.heads // numbers.kv_heads, axis=1) for each in (k, v))
    sequence, position = np.array(batch.sequence_of), np.array(batch.positions)
    is_seen = (sequence[:, None] == sequence) & (position[:, None] >= position)
    weights = np.where(is_seen, np.exp(np.einsum("qhd,khd->hqk", q, k) / numbers.head_dim**0.5), 0)
    attended = np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)
    return exact_linear("o_proj", layer, attended.reshape(len(h), -1), lora)


def exact_feed_forward(layer: Layer, x: mx.array, lora: LoraRows) -> np.ndarray:
    h = exact_norm(exact(x), layer.post_attention_layernorm)
    gate = exact_linear("gate_proj", layer, h, lora)
    return exact_linear("down_proj", layer, gate / (1 + np.exp(-gate)) * exact_linear("up_proj", layer, h, lora), lora)
