"""How fast the CUDA column is: our engine and mlx-lm's BatchGenerator on made-up weights, in one run.

    python -m benchmarks.cuda                 all, some minutes on one H100 or H200
    python -m benchmarks.cuda speed actors    some of it: speed, others, adapters, memory, same, load, actors

Each line of speed names the fraction of the machine's measured copy bandwidth that reading weights and cache once a
step takes, and for prompts of its matrix rate.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.cuda_models import (
    CONFIGS,
    Rates,
    adapter,
    drain,
    engine_of,
    made_up,
    measure,
    measure_reference,
    reference,
    requests,
)
from benchmarks.load import write_made_up
from engine.config import ModelConfig
from engine.engine import Engine
from engine.event import TokenEvent
from engine.kernels.choose import choose
from engine.kernels.cuda.source import Launcher
from engine.kernels.expand import Expand
from engine.kernels.table import Kernels
from engine.quantized import QuantizedTensor
from engine.request import Request
from engine.weights import Model

CONTEXT = 512
TARGETS = {1: 450, 8: 2800, 64: 9000, 256: 15000}  # tokens a second on an H200
STEPS = {1: 200, 8: 120, 64: 80, 256: 160}


@dataclass(frozen=True, slots=True)
class Machine:
    """What one machine can do at most."""

    bytes_per_second: float
    flops: float

    @staticmethod
    def measure() -> "Machine":
        words = mx.random.randint(0, 1 << 30, (1 << 30,), dtype=mx.int32)
        best = min(timed(lambda: mx.eval(words + 1)) for _ in range(8))
        a, b = (mx.random.normal((8192, 8192)).astype(mx.bfloat16) for _ in range(2))
        mx.eval(a, b)
        product = min(timed(lambda: mx.eval(a @ b)) for _ in range(8))
        return Machine(2 * words.nbytes / best, 2 * 8192**3 / product)


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def kernels_for(model: Model, expand: Expand) -> Kernels:
    kernels = choose(model.config, model.weights, 16, expand=expand)
    assert kernels.name == "cuda", "the CUDA kernels were not chosen; the log says why"
    return kernels


def run(engine: Engine, config: ModelConfig, streams: int, steps: int, adapters: int = 0) -> Rates:
    """Measured the second time, on prompts that were not seen before."""
    measure(engine, requests(config, streams, CONTEXT - steps // 2, 8, adapters, seed=1))
    return measure(engine, requests(config, streams, CONTEXT - steps // 2, steps, adapters, seed=2))


def line(name: str, rates: Rates, model: Model, streams: int, machine: Machine) -> None:
    config, weights = model.config, model.weights
    read = sum(w.num_bytes for name, w in weights.named() if isinstance(w, QuantizedTensor) and "embed" not in name)
    read += weights.embed_tokens.num_bytes if weights.lm_head is None else 0  # type: ignore[attr-defined]
    cache = streams * CONTEXT * 4 * config.num_layers * config.num_kv_heads * config.head_dim
    of_copy = (read + cache) / rates.step_seconds / machine.bytes_per_second
    parameters = read * 8 / 4.5
    of_matrix = 2 * parameters * rates.prompt / machine.flops
    print(
        f"{name:<34}{streams:>5}{rates.decode:>10,.0f}{rates.step_seconds * 1e3:>9.2f} ms{of_copy:>7.0%}"
        f"{rates.prompt:>12,.0f}{of_matrix:>7.0%}",
        flush=True,
    )


def show_head() -> None:
    columns = f"{'rows':>5}{'tokens/s':>10}{'a step':>12}{'of copy':>7}{'prompts/s':>12}{'of mm':>7}"
    print(f"{'':<34}{columns}")


def speed(machine: Machine) -> None:
    """Qwen3-8B, with bf16 copies and without, and mlx-lm on the same weights."""
    model = made_up(CONFIGS["Qwen3-8B"])
    show_head()
    for expand, all_streams in (("never", (1, 8, 64, 256)), ("auto", (64, 256))):
        for streams in all_streams:
            mx.clear_cache()
            mx.reset_peak_memory()
            kernels = kernels_for(model, expand)  # type: ignore[arg-type]
            engine = engine_of(model, kernels, streams, CONTEXT)
            rates = run(engine, model.config, streams, STEPS[streams])
            line(f"ours, expand={expand}, target {TARGETS[streams]:,}", rates, model, streams, machine)
            del engine, kernels
    print(f"launches for a token: {count_launches(model)}", flush=True)
    theirs = reference(model)
    for streams, steps in ((1, 40), (8, 20), (64, 6)):
        rates = measure_reference(theirs, model.config, streams, CONTEXT - steps, steps)
        line("mlx-lm's BatchGenerator", rates, model, streams, machine)


def memory(machine: Machine) -> None:
    """The most that one stream takes beside the cache, prompts going in by 512 tokens, without bf16 copies."""
    model = made_up(CONFIGS["Qwen3-8B"])
    mx.clear_cache()
    mx.reset_peak_memory()
    engine = engine_of(model, kernels_for(model, "never"), 1, 2 * CONTEXT, max_batch_tokens=512)
    measure(engine, requests(model.config, 1, CONTEXT, 60))
    cache = sum(array.nbytes for array in engine.runner.cache.arrays())
    print(f"weights and the rest: {(mx.get_peak_memory() - cache) / 1e9:.2f} GB", flush=True)


def count_launches(model: Model) -> int:
    """Kernels of the second step of one stream, counted while its graph is built."""
    engine = engine_of(model, kernels_for(model, "never"), 1, CONTEXT)
    counted = [0]
    call = Launcher.__call__

    def counting(self: Launcher, *given: Any, **numbers: int) -> Any:
        counted[0] += 1
        return call(self, *given, **numbers)

    engine.add(requests(model.config, 1, 20, 4)[0])
    engine.step()
    engine.runner.kernels._stacks.clear()  # type: ignore[attr-defined]
    Launcher.__call__ = counting  # type: ignore[method-assign]
    try:
        engine.step()
    finally:
        Launcher.__call__ = call  # type: ignore[method-assign]
    drain(engine)
    return counted[0]


def others(machine: Machine) -> None:
    """Other shapes."""
    show_head()
    for name in ("Qwen3-0.6B", "Llama-3.1-8B"):
        model = made_up(CONFIGS[name])
        for streams in (1, 64):
            engine = engine_of(model, kernels_for(model, "auto"), streams, CONTEXT)
            line(name, run(engine, model.config, streams, STEPS[streams]), model, streams, machine)
            del engine
            mx.clear_cache()


def adapters(machine: Machine) -> None:
    """32 adapters of rank 16 on all matrices, in a batch of 64, against none."""
    model = made_up(CONFIGS["Qwen3-8B"])
    engine = engine_of(model, kernels_for(model, "never"), 64, CONTEXT)
    show_head()
    plain = run(engine, model.config, 64, 60)
    line("no adapters", plain, model, 64, machine)
    for number in range(32):
        engine.attach(f"a{number}", adapter(model.config, 16, number))
    with_adapters = run(engine, model.config, 64, 60, 32)
    line("32 adapters of rank 16", with_adapters, model, 64, machine)
    print(f"they cost {with_adapters.step_seconds / plain.step_seconds - 1:.1%}", flush=True)


def same(machine: Machine) -> None:
    """What is the same alone and in a batch, run to run, and read again instead of decoded."""
    model = made_up(CONFIGS["Qwen3-0.6B"])
    config, kernels = model.config, kernels_for(model, "never")
    asked = requests(config, 256, 120, 400, seed=5)
    engine = engine_of(model, kernels, 256, 600)
    alone = [answers(engine_of(model, kernels, 8, 600), [request]) for request in asked[:4]]
    again = [answers(engine_of(model, kernels, 8, 600), [request]) for request in asked[:4]]
    print(f"run to run, alone: {agreement(alone, again)}")
    for streams in (8, 64, 256):
        many = answers(engine_of(model, kernels, streams, 600), asked[:streams])
        print(f"alone against a batch of {streams}: {agreement(alone, [many] * 4)}")
        twice = answers(engine_of(model, kernels, streams, 600), asked[:streams])
        equal = sum(many[request] == twice[request] for request in many)
        print(f"run to run, in a batch of {streams}: {equal} of {streams} answers have the same tokens", flush=True)
    print(f"different tokens in an answer, on average: {np.mean([len(set(one)) for one in many.values()]):.0f}")
    resumed = [replace(request, id=f"{request.id}-again", resumed=(tuple(many[request.id]),)) for request in asked]
    resumed = [replace(one, resumed=(one.resumed[0][:-1],)) for one in resumed]
    answers(engine, resumed)
    stats = engine.stats()
    print(f"replayed positions: {stats.replayed_tokens:,}, of them drawn otherwise: {stats.replay_mismatches:,}")


def answers(engine: Engine, asked: list[Request]) -> dict[str, list[int]]:
    for request in asked:
        engine.add(request)
    tokens: dict[str, list[int]] = {request.id: [] for request in asked}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                tokens[event.request_id].append(event.token)
    return tokens


def agreement(first: list[dict[str, list[int]]], second: list[dict[str, list[int]]]) -> str:
    """How many tokens the answers have in common from their start."""
    common = []
    for one, other in zip(first, second, strict=True):
        name = next(iter(one))
        pairs = list(zip(one[name], other[name], strict=True))
        common.append(next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs)))
    return f"{', '.join(map(str, common))} of {len(pairs)} tokens until the first that differs"


def load(machine: Machine) -> None:
    """A made-up checkpoint of 4.6 GB, its file in the system's cache."""
    with tempfile.TemporaryDirectory(prefix="genserve-bench-") as directory:
        place = write_made_up(Path(directory), num_layers=39)
        for _ in range(2):
            command = [sys.executable, "-m", "benchmarks.load", "--measure", str(place)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            print("seconds, bytes, peak bytes, layers:", output.strip(), flush=True)


def actors(machine: Machine) -> None:
    """Through Ray actors, against the bare engine."""
    for mode in ("bare", "actors"):
        mx.clear_cache()
        subprocess.run([sys.executable, "-m", "benchmarks.cuda_actors", mode], check=True)


PARTS = {part.__name__: part for part in (speed, others, adapters, memory, same, load, actors)}


def main(names: list[str]) -> None:
    print(mx.device_info()["device_name"])
    machine = Machine.measure()
    print(f"copies {machine.bytes_per_second / 1e12:.2f} TB/s, multiplies {machine.flops / 1e12:.0f} TFLOP/s in bf16")
    for name in names or PARTS:
        began = time.perf_counter()
        print(f"\n{name}: {PARTS[name].__doc__}", flush=True)
        PARTS[name](machine)
        print(f"({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
