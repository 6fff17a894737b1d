"""engine/kernels/cpu, exact mode: a row's bits do not know what stands beside it."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.adapter import Adapter
from engine.kernels.cpu import missing_reason
from engine.lora import AdapterStack, LoraRows, stack_adapters
from engine.quantized import quantize
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
from engine.kernels.cpu.packed import pack

MANY = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def on_the_cpu():
    before, threads = mx.default_device(), _native.num_threads()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)
    _native.set_num_threads(threads)
    _native.use_instruction_set("best")


INSTRUCTION_SETS = st.sampled_from(["best", "best", "avx2", "generic"])


def use(name: str) -> None:
    try:
        _native.use_instruction_set(name)
    except ValueError:
        _native.use_instruction_set("best")


THREE = [Run(0, 0, 2), Run(1, 0, 2), Run(2, 0, 1)]

numbers = st.builds(
    Numbers,
    hidden=st.sampled_from([32, 64, 75, 96]),
    inner=st.sampled_from([32, 70, 96, 160]),
    heads=st.sampled_from([4, 8]),
    kv_heads=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([8, 16, 26, 64, 80, 96, 128]),
    bits=st.sampled_from([None, 2, 3, 4, 5, 6, 8]),
    dtype=st.sampled_from([mx.float32, mx.float16, mx.bfloat16]),
    vocabulary=st.sampled_from([33, 100]),
    num_layers=st.just(1),
    has_head_norms=st.booleans(),
    has_biases=st.booleans(),
    window=st.sampled_from([None, 5, 300]),
).filter(lambda n: n.bits is None or all(size % 32 == 0 for size in (n.hidden, n.inner, n.heads * n.head_dim)))
lengths = st.one_of(st.integers(1, 40), st.integers(250, 300))


@MANY
@given(numbers, st.lists(lengths, min_size=1, max_size=3), st.data(), INSTRUCTION_SETS)
def test_rows_have_the_same_bits_alone_batched_chunked_threaded_and_beside_adapters(model, ends, data, instructions):
    use(instructions)
    dtype = data.draw(st.sampled_from(["float32", "float16", "int8"]))
    block_size = data.draw(st.sampled_from([8, 16, 17]))
    tables = make_tables(len(ends), max(ends), block_size)
    stack = make_stack(model, [3, 5])
    chosen = data.draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=len(ends), max_size=len(ends)))
    kernels = CpuKernels(model.config, block_size)
    weights = kernels.prepare(make_weights(model))

    def logits(steps: list[list[Run]], adapters, threads: int) -> dict[tuple[int, int], bytes]:
        """By sequence and position, the bits of each row."""
        _native.set_num_threads(threads)
        cache, found = make_cache(model, tables, block_size, dtype), {}
        for runs in steps:
            batch = make_batch(runs, tables, block_size, model.vocabulary, adapters)
            rows = logits_by_halves(kernels, weights, cache, batch, stack)
            places = [(run.sequence, run.first + i) for run in runs for i in range(run.count)]
            found |= {place: row.tobytes() for place, row in zip(places, rows, strict=True)}
        return found

    together = logits([[Run(i, 0, end) for i, end in enumerate(ends)]], chosen, 2)
    assert together == logits([[Run(i, 0, end) for i, end in enumerate(ends)]], chosen, 1)
    assert together == logits(in_chunks(ends, data), chosen, data.draw(st.integers(1, 5)))
    alone = {}
    for i, end in enumerate(ends):
        alone |= logits([[Run(i, 0, end)]], None if chosen[i] < 0 else chosen, 2)
    assert together == alone
    if max(ends) <= 40:
        steps = [[Run(i, at, 1) for i, end in enumerate(ends) if at < end] for at in range(max(ends))]
        assert together == logits(steps, chosen, 2)


def in_chunks(ends: list[int], data: st.DataObject) -> list[list[Run]]:
    """Every sequence cut at random; a step takes a chunk of each that has one left."""
    cuts = [sorted({0, end, *data.draw(st.lists(st.integers(0, end), max_size=4))}) for end in ends]
    return [
        [Run(i, c[step], c[step + 1] - c[step]) for i, c in enumerate(cuts) if step + 1 < len(c)]
        for step in range(max(map(len, cuts)) - 1)
    ]


@MANY
@given(
    st.integers(1, 70), st.integers(1, 8), st.integers(1, 100), st.sampled_from([None, 2, 3, 4, 5, 6, 8]),
    st.sampled_from([32, 64, 128]), st.integers(0, 2**32), st.integers(1, 5), INSTRUCTION_SETS,
)  # fmt: skip
def test_every_product_has_the_same_bits_for_a_row_alone_on_any_threads(
    rows, groups, outputs, bits, group, seed, threads, instructions
):
    use(instructions)
    rng = np.random.default_rng(seed)
    w = floats(rng, outputs, groups * group - (seed % 32 if bits is None else 0))
    w = pack(w if bits is None else quantize(w, bits, group))
    columns, row = w.logical_shape[1], int(rng.integers(rows))
    x, y, norm = floats(rng, rows, columns), floats(rng, rows, outputs), floats(rng, columns)

    def products(chosen: mx.array) -> list[np.ndarray]:
        head = _native.head(x, chosen, norm, 1e-5, w.matrix)
        return [np.array(product) for product in (x[chosen] @ w.T, y[chosen] @ w, head)]

    _native.set_num_threads(2)
    together = products(mx.arange(rows))
    _native.set_num_threads(threads)
    for all_rows, alone in zip(together, products(mx.array([row])), strict=True):
        assert np.array_equal(all_rows[row], alone[0])


def test_all_layers_as_one_operation_have_the_bits_of_the_halves():
    model = Numbers(num_layers=3)
    kernels, tables = CpuKernels(model.config, 16), make_tables(2, 50, 16)
    weights, stack = kernels.prepare(make_weights(model)), make_stack(model, [4, 2])
    caches = [make_cache(model, tables, 16, "int8") for _ in range(2)]
    for runs in ([Run(0, 0, 20), Run(1, 0, 11)], [Run(0, 20, 1), Run(1, 11, 30)]):
        batch = make_batch(runs, tables, 16, model.vocabulary, [1, 0])
        halves = logits_by_halves(kernels, weights, caches[0], batch, stack)
        assert batch.numbers.adapter_of is not None
        lora = LoraRows(stack, batch.numbers.adapter_of)
        x = kernels.layers(kernels.embed(weights, batch.tokens), weights, caches[1], batch, lora)
        assert np.array_equal(halves, np.array(kernels.logits(x, weights, batch.numbers.output_rows)))
    for one, other in zip(caches[0].arrays(), caches[1].arrays(), strict=True):
        assert np.array_equal(np.array(one), np.array(other))


def addresses(stack: AdapterStack) -> list[int]:
    """Where the arrays of a stack lie."""
    return [np.frombuffer(memoryview(array), np.uint8).ctypes.data for array in stack.arrays()]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_an_adapter_written_into_a_slot_has_the_bits_of_one_laid_there(dtype):
    model = Numbers(hidden=96, inner=70, num_layers=2, bits=None)  # 70: a last block that is not whole
    kernels, tables = CpuKernels(model.config, 16), make_tables(3, 20, 16)
    weights, batch = kernels.prepare(make_weights(model)), make_batch(THREE, tables, 16, model.vocabulary, [0, 1, 2])

    def logits_with(stack: AdapterStack) -> np.ndarray:
        return logits_by_halves(kernels, weights, make_cache(model, tables, 16, "float32"), batch, stack)

    before, after = (make_stack(model, [4, 6, 3], seed, share=1.0, dtype=dtype) for seed in (1, 2))
    undisturbed, places = logits_with(before), addresses(before)
    before.replace(1, Adapter(after.take(1), ""))
    assert before.native is not None and addresses(before) == places  # it went on, and nothing was copied for the write
    mixed = stack_adapters([Adapter(before.take(slot), "") for slot in range(3)], model.num_layers)
    found = logits_with(before)
    assert np.array_equal(found, logits_with(mixed))
    assert [np.array_equal(*rows) for rows in zip(found, undisturbed, strict=True)] == [True, True, False, False, True]


def test_what_lies_in_slots_of_others_does_not_matter():
    """Slots that no table of the row names may hold anything, and so may those after its position."""
    model = Numbers(num_layers=1)
    kernels, tables = CpuKernels(model.config, 16), make_tables(1, 300, 16)
    weights, logits = kernels.prepare(make_weights(model)), []
    for filling in (0.0, float("nan"), float("inf")):
        cache = make_cache(model, tables, 16, "float16")
        for layer in cache.layers:
            layer.keys, layer.values = (mx.full(a.shape, filling, a.dtype) for a in (layer.keys, layer.values))
        parts = [[Run(0, 0, 270)], [Run(0, 270, 1)], [Run(0, 271, 20)]]
        batches = [make_batch(runs, tables, 16, model.vocabulary) for runs in parts]
        logits.append(np.concatenate([logits_by_halves(kernels, weights, cache, batch) for batch in batches]))
    assert np.isfinite(logits[0]).all()
    assert np.array_equal(logits[0], logits[1]) and np.array_equal(logits[0], logits[2])


@pytest.mark.parametrize("instructions", ["best", "avx2", "generic"])
@pytest.mark.parametrize(
    ("cache_dtype", "extra_bias"), [("float32", 1e20), ("float16", 2e5), ("float16", 0.0), ("int8", 0.0)]
)
@pytest.mark.parametrize("window", [None, 5, 40, 300])
def test_rows_that_one_thread_attends_alone_have_the_bits_of_a_prompt(instructions, cache_dtype, extra_bias, window):
    """Over several splits, all heads together; also where keys overflow what the cache can hold, or scores a float."""
    model = Numbers(num_layers=1, has_biases=True, kv_heads=4, bits=None, window=window)
    tables = make_tables(1, 770, 16)
    weights = make_weights(model)
    (layer,) = weights.layers
    for name in ("q_proj", "k_proj"):
        module = getattr(layer, name)
        bias = np.array(module.bias)
        bias[5] += extra_bias
        layer = replace(layer, **{name: replace(module, bias=mx.array(bias))})
    weights = replace(weights, layers=[layer])
    use(instructions)

    def logits(runs: list[Run], threads: int) -> np.ndarray:
        _native.set_num_threads(threads)
        kernels, cache = CpuKernels(model.config, 16), make_cache(model, tables, 16, cache_dtype)
        prepared = kernels.prepare(weights)
        parts = [logits_by_halves(kernels, prepared, cache, make_batch([run], tables, 16, 60)) for run in runs]
        return np.concatenate(parts)

    whole = logits([Run(0, 0, 760)], 2)
    alone = logits([Run(0, 0, 7), Run(0, 7, 30), Run(0, 37, 703), *(Run(0, row, 1) for row in range(740, 760))], 1)
    np.testing.assert_array_equal(whole, alone)
