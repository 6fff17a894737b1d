"""Choices of one request share their prompt's blocks, and part where they write."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache import KVCache
from tests.engines import (
    PAPER_CONFIG,
    Answer,
    ask,
    check_invariants,
    collect,
    made_up,
    paper_answer,
    paper_engine,
    run,
    serve,
    serve_one,
    tiny_engine,
)


def test_each_of_n_choices_is_as_if_it_were_alone() -> None:
    request = ask("r", 21, n=8, temperature=1.3, seed=4, max_tokens=20)
    together = serve_one(tiny_engine(), request)
    assert len({tuple(tokens) for tokens in together.choices.values()}) == 8
    for cut in range(8):
        others = tuple(tuple(tokens) if choice != cut else () for choice, tokens in together.choices.items())
        alone = serve_one(tiny_engine(), replace(request, resumed=others))
        assert alone.choices == {cut: together.choices[cut]}


def test_the_prompt_is_read_once_and_its_blocks_are_held_once() -> None:
    engine = paper_engine(num_blocks=40, block_size=4, max_batch_tokens=64)
    request = ask("r", made_up("r", 18, 97), n=6, max_tokens=8)
    engine.add(request)
    answers = collect(engine.step(), {})
    assert engine.stats().used_blocks == 5
    collect(engine.step(), answers)
    check_invariants(engine)
    assert engine.stats().used_blocks == 4 + 6  # the last one is half full, and each writes on in its own
    collect(run(engine), answers)
    assert engine.stats().prompt_tokens == 18
    assert answers["r"].choices == {choice: paper_answer(request.prompt, 8, choice) for choice in range(6)}


def test_the_last_of_the_choices_writes_on_without_a_copy() -> None:
    engine = paper_engine(num_blocks=40, block_size=4)
    engine.add(ask("r", made_up("r", 6, 97), n=3, max_tokens=8))
    engine.step()
    before = engine.scheduler.rows.sequences[0].blocks[1]
    engine.step()
    blocks = [sequence.blocks[1] for sequence in engine.scheduler.rows.sequences]
    assert len(set(blocks)) == 3 and before in blocks


@given(st.integers(1, 9), st.integers(2, 5), st.integers(1, 9), st.sampled_from((2, 4)), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_choices_part_rightly_in_the_smallest_pools(
    prompt: int, n: int, count: int, size: int, more_blocks: int
) -> None:
    num_blocks = -(-(prompt + count) // size) + 1 + more_blocks
    engine = paper_engine(num_blocks=num_blocks, block_size=size, max_sequences=8, max_batch_tokens=8)
    requests = [ask(f"r{index}", made_up(f"r{index}", prompt, 97), n=n, max_tokens=count) for index in range(2)]
    for request in requests:
        engine.add(request)
    answers: dict[str, Answer] = {}
    while engine.has_work:
        collect(engine.step(), answers)
        check_invariants(engine)
    for request in requests:
        for choice in range(n):
            assert answers[request.id].choices[choice] == paper_answer(request.prompt, count, choice)


def test_choices_of_several_requests_fill_the_rows_and_never_more() -> None:
    engine = paper_engine(max_sequences=7, num_blocks=80, block_size=4)
    requests = [ask(f"r{index}", made_up(f"r{index}", 5, 97), n=3, max_tokens=6) for index in range(5)]
    assert len(serve(engine, requests)) == 5


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_blocks_are_copied_with_all_that_is_in_them(dtype: str) -> None:
    cache = KVCache(replace(PAPER_CONFIG, head_dim=4, num_layers=2), 6, 2, dtype)  # type: ignore[arg-type]
    for layer in cache.layers:
        x = mx.random.normal((12, 1, 4), key=mx.random.key(1))
        layer.write(mx.arange(12), x, 2 * x)
    before = [np.array(array).reshape(6, -1) for array in cache.arrays()]
    cache.copy_blocks([(1, 2), (5, 1), (3, 4), (0, 4)])  # a target given twice holds what came last
    for array, old in zip(cache.arrays(), before, strict=True):
        np.testing.assert_array_equal(np.array(array).reshape(6, -1), old[[0, 5, 1, 3, 0, 5]])
