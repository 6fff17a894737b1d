"""The engine on the CPU kernels: the same bits of logits, whatever happens around a request and to it."""

import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.kernels.cpu import missing_reason
from engine.request import Request
from engine.weights import Model
from tests.engines import Answer, ask, made_up, random_adapter, record_logits, serve, tiny_engine, tiny_model

if missing_reason() is not None:
    pytest.skip("the CPU kernels are not built", allow_module_level=True)

from engine.kernels.cpu import _native
from engine.kernels.cpu.column import CpuKernels

Bits = dict[tuple[int, int], bytes]  # of the logits of each drawn token, by choice and position

SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.2, "seed": 7, "top_p": 0.9, "top_k": 40},
    "choices": {"temperature": 1.5, "seed": 11, "n": 3},
    "penalties": {"temperature": 0.7, "seed": 2, "repetition_penalty": 1.4, "presence_penalty": 0.5},
}
MODELS = {
    "4 bits": lambda: tiny_model("qwen3"),
    "floats with biases": lambda: tiny_model("qwen2", None),
    "window": lambda: tiny_model("mistral", sliding_window=12),
}


@pytest.fixture(autouse=True)
def on_the_cpu():
    before, threads = mx.default_device(), _native.num_threads()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)
    _native.set_num_threads(threads)


def engine_of(model: Model, threads: int = 2, **options: Any) -> Engine:
    _native.set_num_threads(threads)
    engine = tiny_engine(model=model, column=CpuKernels, **options)
    for seed, name in enumerate(("x", "y")):
        engine.attach(name, random_adapter(model, 3 + seed, seed))
    return engine


def told(engine: Engine, requests: list[Request]) -> tuple[Answer, Bits]:
    """What the request named "subject" is answered among others, and the bits that its answer came from."""
    log = record_logits(engine)
    answer = serve(engine, requests)["subject"]
    assert engine.stats().replay_mismatches == 0
    return answer, {key[1:]: np.array(logits).tobytes() for key, logits in log.items() if key[0] == "subject"}


def strangers(count: int) -> list[Request]:
    """Of all lengths, with and without adapters."""
    kinds = list(SAMPLINGS.values())
    return [
        ask(
            f"stranger {i}",
            1 + i * 13 % 40,
            adapter=("x", None, "y")[i % 3],
            **{**kinds[i % 4], "max_tokens": 3 + i % 9},
        )
        for i in range(count)
    ]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(sorted(SAMPLINGS)),
    st.sampled_from(["float32", "float16", "int8"]),
    st.integers(1, 45),
    st.sampled_from([None, "x", "y"]),
    st.data(),
)
def test_logits_have_the_same_bits_alone_batched_chunked_found_in_the_cache_and_resumed(
    name, sampling, cache_dtype, prompt, adapter, data
):
    model = MODELS[name]()
    request = ask("subject", prompt, adapter=adapter, **SAMPLINGS[sampling])

    def engine(**options: Any) -> Engine:
        return engine_of(model, data.draw(st.integers(1, 4)), cache_dtype=cache_dtype, **options)

    alone, bits = told(engine(), [request])
    crowd, place = strangers(data.draw(st.integers(1, 12))), data.draw(st.integers(0, 5))
    batched = told(engine(max_sequences=32), [*crowd[:place], request, *crowd[place:]])
    chunked = told(engine(max_sequences=4, max_batch_tokens=data.draw(st.integers(5, 30))), [*crowd[:2], request])
    used = engine()
    serve(used, [replace(request, id="before")])
    found = told(used, [request])
    assert found[0].cached_tokens == [(prompt - 1) // 16 * 16]
    for answer, others in (batched, chunked, found):
        assert answer.choices == alone.choices
        assert others == bits

    cut = data.draw(st.integers(1, 11))
    resumed = replace(request, resumed=tuple(tuple(tokens[:cut]) for _, tokens in sorted(alone.choices.items())))
    answer, rest = told(engine(), [resumed])
    assert answer.choices == {choice: tokens[cut:] for choice, tokens in alone.choices.items()}
    assert rest and rest == {place: bits[place] for place in rest}
    assert {place for place in bits if place[1] >= cut} <= rest.keys()


def test_a_preempted_request_has_the_bits_of_an_undisturbed_one():
    model, request = tiny_model(), ask("subject", 14, temperature=1.2, seed=3, max_tokens=30)
    alone, bits = told(engine_of(model), [request])
    crowded = engine_of(model, num_blocks=18, block_size=4)
    answer, others = told(crowded, [*(ask(f"elder {i}", 9, max_tokens=40) for i in range(2)), request])
    assert crowded.stats().preemptions > 0
    assert answer.choices == alone.choices
    assert others == bits


def test_a_long_answer_has_the_bits_of_its_text_read_in_as_a_prompt():
    """Decode = prefill, over the border of the splits that attention is cut into."""
    model, prompt = tiny_model(), made_up("long", 240)
    alone, bits = told(engine_of(model), [ask("subject", prompt, max_tokens=40)])
    for cut in (1, 15, 16, 17, 39):
        read = ask("subject", prompt + tuple(alone.tokens[:cut]), max_tokens=1)
        assert told(engine_of(model), [read])[1][0, 0] == bits[0, cut]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_cache_takes_memory_as_it_fills():
    before = resident_bytes()
    engine = tiny_engine(num_blocks=1 << 15, block_size=16, max_sequences=1 << 12, column=CpuKernels)
    serve(engine, [ask("r0", 40)])
    num_bytes = sum(array.nbytes for array in engine.runner.cache.arrays())
    assert num_bytes > 1 << 27
    assert resident_bytes() - before < num_bytes // 4


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
