"""What an engine holds does not grow with what it has done."""

import gc
import sys
from collections.abc import Callable

import mlx.core as mx

from engine.engine import Engine
from engine.request import Request
from tests.engines import ask, check_invariants, made_up, paper_engine, random_adapter, tiny_engine, tiny_model


def keep_busy(engine: Engine, request: Callable[[int], Request], first: int, num_steps: int) -> int:
    """So many steps, with always a request that waits; gives the number of the next request."""
    for _ in range(num_steps):
        while engine.scheduler.num_waiting < 2:
            engine.add(request(first))
            first += 1
        engine.step()
        if first % 7 == 0:
            engine.abort(f"r{first - 3}")
    return first


def test_objects_and_blocks_are_as_many_after_ten_thousand_steps_as_after_two_thousand() -> None:
    engine = paper_engine(num_blocks=40, block_size=4, max_sequences=3, max_batch_tokens=24)

    def request(number: int) -> Request:
        prompt, n = made_up(f"r{number}", 1 + number % 19, 97), 1 + (number % 11 == 0)
        return ask(f"r{number}", prompt, max_tokens=1 + number % 23, tenant=f"t{number % 50}", n=n)

    def objects() -> int:
        engine.runner.num_rows.clear()  # type: ignore[attr-defined]
        gc.collect()
        return sys.getallocatedblocks()

    made = keep_busy(engine, request, 0, 2000)
    before = objects()
    made = keep_busy(engine, request, made, 8_000)
    assert objects() < before + 1000
    assert made > 1500
    check_invariants(engine)
    assert engine.stats().remembered_blocks <= engine.stats().num_blocks


def test_the_memory_of_arrays_stays_as_it_is() -> None:
    model = tiny_model()
    engine = tiny_engine(num_blocks=60, block_size=8, max_sequences=6, max_batch_tokens=40)
    for name in ("x", "y"):
        engine.attach(name, random_adapter(model, seed=ord(name)))

    def request(number: int) -> Request:
        adapter = (None, "x", "y")[number % 3]
        penalty = 1.0 + (number % 5 == 0)
        logprobs = 2 if number % 4 == 0 else None
        return ask(
            f"r{number}", 1 + number % 40, adapter=adapter, max_tokens=20, repetition_penalty=penalty, logprobs=logprobs
        )

    made = keep_busy(engine, request, 0, 200)
    before, blocks = mx.get_active_memory(), engine.stats().num_blocks
    keep_busy(engine, request, made, 400)
    assert mx.get_active_memory() < before + 100_000  # a step's own arrays
    assert engine.stats().num_blocks == blocks


def test_no_step_copies_a_whole_array_of_the_cache() -> None:
    engine = tiny_engine(num_blocks=4000, max_sequences=24)
    smallest = min(array.nbytes for array in engine.runner.cache.arrays())
    engine.add(ask("long", 20, max_tokens=100))
    for _ in range(5):
        engine.step()
    mx.eval(engine.runner.cache.arrays())
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for index in range(4):  # chunks, choices that part, and decode rows in one step
        engine.add(ask(f"r{index}", 21 + index, n=4, temperature=1.0))
        for _ in range(4):
            engine.step()
    assert mx.get_peak_memory() - before < smallest / 4


def test_an_idle_engine_holds_no_request() -> None:
    engine = paper_engine()
    keep_busy(engine, lambda number: ask(f"r{number}", [number % 97], max_tokens=3), 0, 50)
    while engine.has_work:
        engine.step()
    assert len(engine.roster) == 0 and not engine.scheduler.queue._lanes
    assert engine.stats().used_blocks == 0 and not engine.scheduler.rows.sequences
