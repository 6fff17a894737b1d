"""How fast the CUDA column is: our engine and mlx-lm's BatchGenerator on made-up weights, in one run.

    python -m benchmarks.cuda                 all, in less than eight minutes on one H100 or H200
    python -m benchmarks.cuda speed actors    some of it; its parts are at the end of this file

Each part is a process of its own, so that one that fails takes nothing along. Each line of speed names the fraction of
the machine's measured copy bandwidth that reading weights, as the checkpoint has them, and cache once a step takes, and
for prompts of its matrix rate.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchmarks.cuda_kernels import compile_all, start_all
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
from benchmarks.cuda_same import compare
from benchmarks.load import write_made_up
from engine.config import ModelConfig
from engine.engine import Engine
from engine.kernels.choose import choose
from engine.kernels.cuda.source import Launcher
from engine.kernels.expand import Expand
from engine.kernels.table import Kernels
from engine.quantized import QuantizedTensor
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


def run(engine: Engine, config: ModelConfig, streams: int, steps: int) -> Rates:
    """Measured the second time, on prompts that were not seen before: the graphs of all lengths are there by then."""
    measure(engine, requests(config, streams, CONTEXT - steps // 2, steps, seed=1))
    return measure(engine, requests(config, streams, CONTEXT - steps // 2, steps, seed=2))


def line(name: str, rates: Rates, model: Model, streams: int, machine: Machine) -> None:
    config, weights = model.config, model.weights
    read = sum(w.num_bytes for name, w in weights.named() if isinstance(w, QuantizedTensor) and "embed" not in name)
    read += weights.embed_tokens.num_bytes if weights.lm_head is None else 0  # type: ignore[attr-defined]
    cache = streams * CONTEXT * 4 * config.num_layers * config.num_kv_heads * config.head_dim
    of_copy = (read + cache) / rates.step_seconds / machine.bytes_per_second
    head = config.vocab_size * config.hidden_size  # which of a prompt only the last token meets
    parameters = read * 8 / 4.5 - head
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
    """Qwen3-8B, with bf16 copies and without."""
    model = made_up(CONFIGS["Qwen3-8B"])
    show_head()
    for expand, all_streams in (("never", (1, 8, 64, 256)), ("auto", (64, 256))):
        for streams in all_streams:
            mx.clear_cache()
            mx.reset_peak_memory()
            kernels = kernels_for(model, expand)  # type: ignore[arg-type]
            engine = engine_of(model, kernels, streams, CONTEXT)
            with Counting() as counted:
                rates = run(engine, model.config, streams, STEPS[streams])
            line(f"ours, expand={expand}, target {TARGETS[streams]:,}", rates, model, streams, machine)
            if counted.kernels or counted.mlx_kernels:
                print(
                    f"    of kernels, {counted.kernels} of ours and {counted.mlx_kernels} of MLX's came in mid-serving"
                )
            if streams in (1, 64) and expand == "never":
                print(f"    launches of a step: {count_launches(engine, model.config, streams)}", flush=True)
            del engine, kernels


def theirs(machine: Machine) -> None:
    """mlx-lm's BatchGenerator; its kernels are compiled on the way, which the first line pays for."""
    model = made_up(CONFIGS["Qwen3-8B"])
    show_head()
    generator = reference(model)
    for streams, steps in ((1, 8), (1, 40), (8, 20), (64, 6)):
        rates = measure_reference(generator, model.config, streams, CONTEXT - steps, steps)
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


class Counting:
    """Counts, within, kernels that are made ready."""

    def __enter__(self) -> "Counting":
        self.kernels, self.mlx_kernels = 0, len(mlx_kernels())
        self._compile = Launcher.compile

        def compile(launcher: Launcher, *given: Any) -> Any:
            self.kernels += 1
            return self._compile(launcher, *given)

        Launcher.compile = compile  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        Launcher.compile = self._compile  # type: ignore[method-assign]
        self.mlx_kernels = len(mlx_kernels()) - self.mlx_kernels


def mlx_kernels() -> list[Path]:
    """Those that MLX has compiled, ever."""
    return list(Path(os.environ["MLX_PTX_CACHE_DIR"]).glob("*.ptx"))


def count_launches(engine: Engine, config: ModelConfig, streams: int, adapters: int = 0) -> int:
    """Kernels of a step in which all streams decode."""
    for request in requests(config, streams, 20, 12, adapters, seed=3):
        engine.add(request)
    while len(engine.scheduler.rows) < streams:
        engine.step()
    engine.step()
    recorded = next(reversed(engine.runner.kernels._steps[2]._graphs.values()))  # type: ignore[attr-defined]
    drain(engine)
    return len(recorded.graph.nodes)


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
    """Adapters of rank 16 on all matrices, against none: one on all rows, and 32 in a batch of 64; in turn, medians.

    All run in one engine, in turn: a cache whose blocks lie scattered after much use is 2 % slower than a fresh one.
    """
    model = made_up(CONFIGS["Qwen3-8B"])
    engine = engine_of(model, kernels_for(model, "never"), 64, CONTEXT)
    for number in range(32):
        engine.attach(f"a{number}", adapter(model.config, 16, number))
    show_head()
    for streams, numbers, steps in ((1, (0, 1), 200), (64, (0, 1, 32), 100)):
        rounds = [
            [
                measure(
                    engine, requests(model.config, streams, CONTEXT - steps // 2, steps, number, seed=turn + number)
                )
                for number in numbers
            ]
            for turn in (100, 200, 300, 400)
        ]
        medians = [sorted(rates, key=lambda one: one.step_seconds)[1] for rates in zip(*rounds[1:], strict=True)]
        for number, rates in zip(numbers, medians, strict=True):
            line(f"{number} adapters", rates, model, streams, machine)
            cost = rates.step_seconds / medians[0].step_seconds - 1
            launches = count_launches(engine, model.config, streams, number)
            print(f"    cost {cost:.1%}; {launches} launches", flush=True)


def same(machine: Machine) -> None:
    """What is the same alone and in a batch, run to run, and read again instead of decoded."""
    compare(lambda model: kernels_for(model, "never"))


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
        subprocess.run([sys.executable, "-m", "benchmarks.cuda_actors", mode], check=True)


def kernels(machine: Machine) -> None:
    """All models' kernels compiled side by side, and then starts that find them on the disk."""
    compile_all()
    start_all()


PARTS = {part.__name__: part for part in (kernels, speed, adapters, actors, memory, same, load, others, theirs)}
MOST_SECONDS = 150  # of a part


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    names = parser.parse_args().parts
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"{', '.join(unknown)}: no part; there are {', '.join(PARTS)}")
    if not mx.cuda.is_available():
        parser.error("MLX has no NVIDIA GPU here")
    failed = []
    for name in names or PARTS:
        began = time.perf_counter()
        print(f"\n{name}: {PARTS[name].__doc__}", flush=True)
        command = [sys.executable, "-c", "from benchmarks.cuda import part; import sys; part(sys.argv[1])", name]
        code = ended(command, MOST_SECONDS)
        if code != 0:
            failed.append(name)
            print("took too long" if code is None else f"failed with {code}", flush=True)
        print(f"({time.perf_counter() - began:.0f} s)", flush=True)
    return 1 if failed else 0


def ended(command: list[str], seconds: float) -> int | None:
    """Its exit code; None if it took too long, and was ended with what it had started."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(seconds)
    except BaseException as trouble:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(trouble, subprocess.TimeoutExpired):
            raise
        return None


def part(name: str) -> None:
    machine = Machine.measure() if name in ("speed", "others", "adapters", "theirs") else Machine(1.0, 1.0)
    if name == "speed":
        print(mx.device_info()["device_name"])
        print(
            f"copies {machine.bytes_per_second / 1e12:.2f} TB/s, multiplies {machine.flops / 1e12:.0f} TFLOP/s in bf16"
        )
        mx.clear_cache()
    PARTS[name](machine)


if __name__ == "__main__":
    sys.exit(main())
