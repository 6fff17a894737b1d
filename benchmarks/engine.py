"""What the engine costs beside the model: host time a step, its share of a real step, and adapters side by side.

    python -m benchmarks.engine              # all five: a minute; ten on a CPU without its own kernels
    python -m benchmarks.engine --only stub  # the first alone, seconds

stub: 256 rows through kernels that compute nothing, so that all that is left is the engine: under 0.5 ms a step
with the core alone.
share: 32 rows of SmolLM2; host time of a step (all but waiting for the model) over the whole step: under 3 %.
adapters: 32 rows of SmolLM2, each with an adapter of rank 8 of its own, against all with the same one: within 15 %.
draw: a token each for 16 rows of logits as long as SmolLM2's, by the settings of their requests.
attach: the same 32 adapters; one goes and another comes while 31 rows run: what they wait for it.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.adapter import Adapter, LowRank
from engine.batch import Batch
from engine.cache import KVCache, LayerCache
from engine.config import ModelConfig
from engine.engine import Engine
from engine.kernels.choose import choose
from engine.kernels.portable import one_by_one
from engine.kernels.table import DecodeStep
from engine.lora import LoraRows
from engine.options import CacheDtype, EngineOptions
from engine.request import Request, Sampling
from engine.weights import LINEAR_MODULES, Layer, Model, Weights
from loaders.checkpoint import load_model

STUB_CONFIG = ModelConfig("llama", 49152, 576, 1536, 30, 9, 3, 64, 1e-5, 1e5, 8192, True)


class StubKernels:
    """Kernels that give back what they got."""

    name = "stub"
    cache_dtype: CacheDtype = "int8"

    def __init__(self, num_rows: int) -> None:
        self.tokens = mx.zeros(num_rows, mx.int32)
        self.x = mx.zeros((num_rows, 1))

    def prepare(self, weights: Weights) -> Weights:
        return weights

    def warm_up(self, weights: Weights, cache: KVCache, max_rows: int, max_tokens: int) -> None:
        pass

    def embed(self, weights: Weights, tokens: mx.array) -> mx.array:
        return self.x

    def layers(self, x: mx.array, weights: Weights, cache: KVCache, batch: Batch, lora: LoraRows | None) -> mx.array:
        return one_by_one(self, x, weights, cache, batch, lora)

    def attention(
        self, x: mx.array, layer: Layer, index: int, cache: LayerCache, batch: Batch, lora: LoraRows | None
    ) -> mx.array:
        return x

    def feed_forward(self, x: mx.array, layer: Layer, index: int, lora: LoraRows | None) -> mx.array:
        return x

    def logits(self, x: mx.array, weights: Weights, rows: NDArray[np.int32]) -> mx.array:
        return x

    def draw(self, logits: mx.array, knobs: NDArray[np.float32], *, is_greedy: bool, is_filtered: bool) -> mx.array:
        return self.tokens if len(knobs) == self.tokens.size else mx.zeros(len(knobs), mx.int32)

    def decode(self, weights: Weights, cache: KVCache, step: DecodeStep) -> None:
        pass

    def read(self, tokens: mx.array) -> list[int]:
        return np.array(tokens).tolist()


def stub_model() -> Model:
    """A model without tensors, whose cache has a single number for a token."""
    layer = Layer(*[None] * 9)  # type: ignore[arg-type]
    config = replace(STUB_CONFIG, num_kv_heads=1, head_dim=1)
    return Model(config, Weights(mx.zeros(1), (layer,) * config.num_layers, mx.zeros(1), None), "stub")


def stub_engine(num_rows: int, context: int) -> Engine:
    blocks = num_rows * (context // 16 + 2)
    options = EngineOptions(
        cache_bytes=blocks * 16 * 2 * 30 * 5, max_sequences=num_rows, max_batch_tokens=2 * num_rows, max_context=context
    )
    return Engine(stub_model(), StubKernels(num_rows), options)


def requests(count: int, max_tokens: int, **sampling: float) -> Iterator[Request]:
    settings = Sampling(**{"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0.7, "top_p": 0.9, **sampling})  # type: ignore[arg-type]
    return (Request(f"r{index}", (1 + index, 5, 6, 7), settings) for index in range(count))


def until_all_decode(engine: Engine, count: int) -> None:
    while len(engine.scheduler.rows) < count:
        engine.step()
    for _ in range(3):
        engine.step()


def step_seconds(engine: Engine, num_steps: int) -> list[float]:
    seconds = []
    for _ in range(num_steps):
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def stub(num_rows: int = 256, num_steps: int = 640) -> None:
    """By the clock, and of those steps alone before which a fixed piece of work took no longer than it ever need."""
    for name, sampling in (("sampled", {}), ("greedy", {"temperature": 0.0, "top_p": 1.0})):
        engine = stub_engine(num_rows, 1024)
        for request in requests(num_rows, 900, **sampling):
            engine.add(request)
        until_all_decode(engine, num_rows)
        seconds, paces = list[float](), list[float]()
        for _ in range(num_steps):
            paces.append(piece_of_work())
            seconds += step_seconds(engine, 1)
        quiet = [found for found, pace in zip(seconds, paces, strict=True) if pace < 1.1 * min(paces)]
        middle, undisturbed = median(seconds) * 1e3, median(quiet) * 1e3
        found = f"{undisturbed:.3f} ms a step with the core alone ({len(quiet)} of {num_steps}), {middle:.3f} ms of all"
        row(f"engine, {num_rows} rows, {name}", found, "0.5 ms")


def piece_of_work() -> float:
    """Seconds of something that takes as long each time, unless others want the core."""
    start = time.perf_counter()
    sum(index * index for index in range(2000))
    return time.perf_counter() - start


def share(model: Model, num_rows: int = 32, num_steps: int = 30) -> None:
    """The engine's own time is that of a step whose kernels compute nothing."""
    engine = real_engine(model, num_rows)
    for request in requests(num_rows, num_steps + 20):
        engine.add(request)
    until_all_decode(engine, num_rows)
    whole = median(step_seconds(engine, num_steps))
    stubbed = stub_engine(num_rows, 1024)
    for request in requests(num_rows, 400):
        stubbed.add(request)
    until_all_decode(stubbed, num_rows)
    host = median(step_seconds(stubbed, 300))
    row(f"SmolLM2, {num_rows} rows", f"{host * 1e3:.3f} ms of {whole * 1e3:.1f} ms a step: {host / whole:.2%}", "3 %")


def adapters(model: Model, count: int = 32, num_rounds: int = 12) -> None:
    """In turn, a few steps of each at a time: so whatever else the machine does falls on all three."""
    engines = {num_adapters: adapted_engine(model, count, num_adapters) for num_adapters in (0, 1, count)}
    seconds: dict[int, list[float]] = {num_adapters: [] for num_adapters in engines}
    for _ in range(num_rounds):
        for num_adapters, engine in engines.items():
            seconds[num_adapters] += step_seconds(engine, 4)
    speeds = {num_adapters: count / median(found) for num_adapters, found in seconds.items()}
    for num_adapters, speed in speeds.items():
        loss = f", {1 - speed / speeds[1]:.1%} less than with one" if num_adapters == count else ""
        target = "15 % loss" if num_adapters == count else ""
        row(f"SmolLM2, {count} rows, {num_adapters} adapters", f"{speed:.1f} tokens/s{loss}", target)


def adapted_engine(model: Model, num_rows: int, num_adapters: int) -> Engine:
    engine = real_engine(model, num_rows)
    for index in range(num_adapters):
        engine.attach(f"a{index}", random_adapter(model, index))
    for index, request in enumerate(requests(num_rows, 400)):
        engine.add(replace(request, adapter=f"a{index % num_adapters}" if num_adapters else None))
    until_all_decode(engine, num_rows)
    return engine


def attach(model: Model, count: int = 32, num_times: int = 8) -> None:
    """How long an adapter's coming and going takes, and how much longer the step is in which it happens."""
    engine = real_engine(model, count)
    comings = [random_adapter(model, index) for index in range(count + num_times)]
    for index in range(count):
        engine.attach(f"a{index}", comings[index])
    for index, request in enumerate(requests(count - 1, 400)):
        engine.add(replace(request, adapter=f"a{index}"))
    until_all_decode(engine, count - 1)
    usual, calls, disturbed = list[float](), list[float](), list[float]()
    name = f"a{count - 1}"
    for adapter in comings[count:]:
        usual += step_seconds(engine, 5)
        start = time.perf_counter()
        engine.detach(name)
        engine.attach(name, adapter)
        calls.append(time.perf_counter() - start)
        engine.step()
        disturbed.append(time.perf_counter() - start)
    found = f"{median(calls) * 1e3:.0f} ms; step {median(usual) * 1e3:.0f} ms, with it {median(disturbed) * 1e3:.0f} ms"
    row(f"SmolLM2, {count} adapters, one replaced", found, "")


def draw(model: Model, num_rows: int = 16) -> None:
    kernels = choose(model.config, model.weights, EngineOptions().block_size)
    logits = mx.array(np.random.default_rng(0).standard_normal((num_rows, model.config.vocab_size), np.float32) * 3)
    for name, temperature, top_k, top_p, min_p in (
        ("greedy", 0.0, 0, 1.0, 0.0),
        ("temperature", 0.7, 0, 1.0, 0.0),
        ("top_p", 0.7, 0, 0.9, 0.0),
        ("top_k", 0.7, 40, 1.0, 0.0),
        ("min_p", 0.7, 0, 1.0, 0.05),
    ):
        knobs = np.tile(np.array([temperature, top_k, top_p, min_p, 0.5], np.float32), (num_rows, 1))
        seconds = []
        for _ in range(50):
            start = time.perf_counter()
            mx.eval(kernels.draw(logits, knobs, is_greedy=not temperature, is_filtered=bool(top_k) or top_p < 1))
            seconds.append(time.perf_counter() - start)
        row(f"{num_rows} draws, {name}", f"{median(seconds) * 1e3:.2f} ms", "")


def real_engine(model: Model, num_rows: int) -> Engine:
    options = EngineOptions(cache_bytes=1 << 28, max_sequences=num_rows, max_batch_tokens=256, max_context=1024)
    return Engine(model, choose(model.config, model.weights, options.block_size), options)


def random_adapter(model: Model, seed: int, rank: int = 8) -> Adapter:
    rng, modules = np.random.default_rng(seed), {}
    for index, layer in enumerate(model.weights.layers):
        for name in LINEAR_MODULES:
            weight = getattr(layer, name).weight
            out, into = getattr(weight, "logical_shape", weight.shape)
            a, b = rng.standard_normal((into, rank)) / into**0.5, rng.standard_normal((rank, out)) / 100
            modules[index, name] = LowRank(mx.array(a, mx.float32), mx.array(b, mx.float32), 1.0)
    return Adapter(modules, f"random {seed}")


def row(what: str, found: str, target: str) -> None:
    print(f"{what:34} {found:58} {target and 'target: ' + target}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("stub", "share", "adapters", "draw", "attach"))
    only = parser.parse_args().only
    if only in (None, "stub"):
        stub()
    real: tuple[tuple[str, Callable[[Model], None]], ...] = (
        ("share", share),
        ("adapters", adapters),
        ("draw", draw),
        ("attach", attach),
    )
    if only != "stub":
        model = load_model("smollm2")
        for name, measure in real:
            if only in (None, name):
                measure(model)


if __name__ == "__main__":
    main()
