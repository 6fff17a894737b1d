"""engine/kernels/cpu in an engine's life: caches in place, pipelines, threads, forks, the choice at start."""

import logging
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine.cache import KVCache
from engine.kernels.choose import choose
from engine.kernels.cpu import missing_reason
from tests.cpu_models import Numbers, Run, logits_by_halves, make_batch, make_cache, make_tables, make_weights

if missing_reason() is not None:
    pytest.skip("the CPU kernels are not built", allow_module_level=True)

from engine.kernels.cpu import _native
from engine.kernels.cpu.column import CpuKernels

BLOCK = 16


@pytest.fixture(autouse=True)
def on_the_cpu():
    before, threads = mx.default_device(), _native.num_threads()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)
    _native.set_num_threads(threads)


@pytest.fixture
def world():
    """A model, and a cache large enough that a copy would show."""
    numbers = Numbers(num_layers=1, head_dim=64)
    kernels, tables = CpuKernels(numbers.config, BLOCK), make_tables(4, 4000, BLOCK)
    return numbers, kernels, kernels.prepare(make_weights(numbers)), tables


def step(world, cache, first, count=1):
    numbers, kernels, weights, tables = world
    batch = make_batch([Run(0, first, count)], tables, BLOCK, numbers.vocabulary)
    x = kernels.layers(kernels.embed(weights, batch.tokens), weights, cache, batch, None)
    return kernels.logits(x, weights, batch.numbers.output_rows)


def test_cache_is_written_in_place(world):
    cache = make_cache(world[0], world[3], BLOCK, "float16")
    mx.eval(step(world, cache, 0, 5), cache.arrays())
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for at in range(5, 20):
        mx.eval(step(world, cache, at))
    assert mx.get_peak_memory() - before < cache.layers[0].keys.nbytes // 4


def test_cache_is_written_in_place_while_the_step_before_still_runs(world):
    cache = make_cache(world[0], world[3], BLOCK, "float16")
    mx.eval(step(world, cache, 0, 5), cache.arrays())
    mx.reset_peak_memory()
    before, previous = mx.get_active_memory(), None
    for at in range(5, 40):
        logits = step(world, cache, at)
        mx.async_eval(logits)
        if previous is not None:
            np.array(previous)
        previous = logits
    mx.eval(previous)
    assert mx.get_peak_memory() - before < cache.layers[0].keys.nbytes // 4


def test_a_long_context_moves_to_large_pages_and_keeps_its_bits(world):
    caches = [unwritten_cache(world) for _ in range(2)]
    mx.eval(step(world, caches[0], 0, 1000))
    for at in range(1000, 1032):  # 512 bytes a slot: from 1,024 on a quarter of a page is read
        one = np.array(step(world, caches[0], at))
    at_once = np.array(step(world, caches[1], 0, 1032))[-1:]
    assert np.array_equal(one, at_once)


def test_each_cache_has_large_pages_also_where_another_lay():
    if not has_large_pages():
        pytest.skip("this system makes no large pages of small ones")
    run = [sys.executable, "-c", "from tests.test_cpu_column import tell_large_pages; tell_large_pages()"]
    found = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout
    assert found.split() == ["0", "4"] * 3, "two passes over a long context move one page each of keys and of values"


def tell_large_pages() -> None:
    """In a process of its own, where no memory is another test's. Arrays of 40 MB, which go back to the system."""
    mx.set_default_device(mx.cpu)
    numbers = Numbers(num_layers=1, head_dim=64)
    kernels, tables = CpuKernels(numbers.config, BLOCK), make_tables(4, 20_000, BLOCK)
    world = numbers, kernels, kernels.prepare(make_weights(numbers)), tables
    for _ in range(3):
        cache = unwritten_cache(world)
        for first, count in [(0, 1000), (1000, 32), (1032, 1)]:
            mx.eval(step(world, cache, first, count))
            if first != 1000:
                print(large_pages_of(cache))
        del cache


def unwritten_cache(world):
    numbers, kernels, weights, tables = world
    cache = make_cache(numbers, tables, BLOCK, "float32")
    kernels.warm_up(weights, cache, 1, 1)
    return cache


def test_an_unwritten_array_is_an_array_like_others(world):
    kernels = world[1]
    for shape in [(4, 6), (1024, 1030)]:  # small, and more than a large page
        before = mx.get_active_memory()
        array = _native.unwritten_like(kernels._decoder, mx.zeros(shape))
        array[:] = mx.arange(array.size).reshape(shape)
        columns = mx.arange(array.size).reshape(shape[::-1]).T
        assert np.array_equal(np.array(array + columns), np.array(array) + np.array(columns))
        del array, columns
        assert mx.get_active_memory() == before, "what MLX has counted it must count back"


def large_pages_of(cache: KVCache) -> int:
    """How many pages of 2 MB are in use where its arrays lie, and what is mapped beside them."""
    addresses = [np.frombuffer(memoryview(array), np.uint8).ctypes.data for array in cache.arrays()]
    found, is_here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_here = any(int(bounds[1], 16) <= address < int(bounds[2], 16) for address in addresses)
        elif is_here and line.startswith("AnonHugePages:"):
            found += int(line.split()[1]) >> 11
    return found


def has_large_pages() -> bool:
    """Whether this system makes small pages that are in use into large ones when it is asked, and may be asked."""
    choices = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not choices.exists() or "[never]" in choices.read_text():
        return False
    collapse, large = 25, 1 << 21
    with mmap.mmap(-1, 2 * large, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        begin = np.frombuffer(memory, np.uint8).ctypes.data
        memory[:] = bytes(len(memory))
        try:
            memory.madvise(collapse, -begin % large, large)
        except OSError:
            return False
        return True


def test_a_cache_that_somebody_holds_is_copied(world):
    cache = make_cache(world[0], world[3], BLOCK, "float32")
    mx.eval(step(world, cache, 0, 5), cache.arrays())
    held, view = cache.layers[0].keys, cache.layers[0].values[:3]
    mx.eval(view)
    before, before_view = np.array(held), np.array(view)
    mx.eval(step(world, cache, 5, 30), cache.arrays())
    assert np.array_equal(np.array(held), before)
    assert np.array_equal(np.array(view), before_view)
    assert not np.array_equal(np.array(cache.layers[0].keys), before)


def test_cache_survives_a_step_that_is_built_and_never_run(world):
    numbers, kernels, weights, tables = world
    cache, other = (make_cache(numbers, tables, BLOCK, "float32") for _ in range(2))
    for at in (cache, other):
        mx.eval(step(world, at, 0, 5))
    step(world, cache, 5)
    step(world, other, 5)
    assert np.array_equal(np.array(step(world, cache, 6)), np.array(step(world, other, 6)))


def test_copied_blocks_are_read_by_the_next_step(world):
    numbers, _, _, tables = world
    cache = make_cache(numbers, tables, BLOCK, "float16")
    mx.eval(step(world, cache, 0, 16))
    expected = np.array(step(world, cache, 16))
    target = int(tables[1, 0])
    cache.copy_blocks([(int(tables[0, 0]), target)])
    moved = tables.copy()
    moved[0, 0] = target
    again = np.array(step((*world[:3], moved), cache, 16))
    assert np.array_equal(again, expected)


def test_no_rows_are_no_work(world):
    numbers, kernels, weights, tables = world
    cache = make_cache(numbers, tables, BLOCK, "float16")
    batch = make_batch([Run(0, 0, 0)], tables, BLOCK, numbers.vocabulary)
    assert logits_by_halves(kernels, weights, cache, batch).shape == (0, numbers.vocabulary)


def test_a_slot_outside_the_cache_is_refused(world):
    numbers, kernels, weights, tables = world
    cache = make_cache(numbers, tables[:1], BLOCK, "float16")
    with pytest.raises((RuntimeError, IndexError), match="slot|block"):
        mx.eval(step((numbers, kernels, weights, tables + tables.size), cache, 0))


def test_forked_child_computes(world):
    """The child has no threads of the pool's; it makes its own."""
    program = """
import os, sys
import mlx.core as mx
from engine.kernels.cpu import _native
mx.set_default_device(mx.cpu)
_native.set_num_threads(3)
values = mx.array([[1.0] * 64] * 256)
_native.pack_floats(values)
if (child := os.fork()) == 0:
    _native.pack_floats(values)  # the pool's work alone: MLX's own thread is gone
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], timeout=60, env=os.environ | {"PYTHONPATH": "."}
    )
    assert done.returncode == 0


def test_threads_are_as_many_as_asked_for(world):
    CpuKernels(world[0].config, BLOCK, num_threads=3)
    assert _native.num_threads() == 3
    _native.set_num_threads(0)
    assert _native.num_threads() == len(os.sched_getaffinity(0))


def test_threads_are_as_many_as_cores_that_may_be_used_and_not_what_openmp_says():
    """Ray sets OMP_NUM_THREADS to 1 in its workers."""
    program = "import os, mlx.core; from engine.kernels.cpu import _native; print(_native.num_threads())"
    one_core = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); {program}"
    for openmp, code, wanted in (("1", program, len(os.sched_getaffinity(0))), ("7", one_core, 1)):
        environment = os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": openmp}
        done = subprocess.run([sys.executable, "-c", code], timeout=60, env=environment, capture_output=True, text=True)
        assert (done.stdout.strip(), done.stderr) == (str(wanted), "")


@pytest.mark.parametrize("numbers", [Numbers(), Numbers(bits=None, has_biases=True), Numbers(window=9, is_tied=False)])
def test_choice_falls_on_the_column_that_agrees(numbers, caplog):
    assert choose(numbers.config, make_weights(numbers), BLOCK).name == "cpu"
    assert not caplog.records


def test_more_queries_of_a_key_head_than_the_kernels_take_are_no_end(caplog):
    numbers = Numbers(heads=72, kv_heads=1, head_dim=8)
    assert choose(numbers.config, make_weights(numbers), BLOCK).name == "cpu"
    assert not caplog.records


def test_choice_leaves_a_wrong_column_out_and_says_so(monkeypatch, caplog):
    numbers = Numbers()
    right = CpuKernels.logits
    monkeypatch.setattr(CpuKernels, "logits", lambda self, *given: right(self, *given) * 1.01)
    with caplog.at_level(logging.WARNING):
        assert choose(numbers.config, make_weights(numbers), BLOCK).name == "portable"
    assert "disagree" in caplog.text
