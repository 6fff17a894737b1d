"""What an engine holds while a million tokens go through it: requests of all kinds that come, end and are aborted.

    python -m benchmarks.memory                    # kernels that compute nothing: the engine alone, under a minute
    python -m benchmarks.memory --model smollm2    # with a real model, as long as that takes
    python -m benchmarks.memory --tokens 5000000

Flat means: what is held at the end is what was held after the first tenth, but for a few objects of Python's own.
"""

import argparse
import gc
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import mlx.core as mx
import numpy as np

from benchmarks.command_line import at_least, told_in_a_sentence
from benchmarks.engine import StubKernels, stub_model
from engine.engine import Engine
from engine.kernels.choose import choose
from engine.options import EngineOptions
from engine.request import Request, Sampling
from loaders.checkpoint import load_model
from loaders.made_up import made_up_adapter

NUM_ROWS = 64
ADAPTERS = ("a", "b", "c")
MIB = 1 << 20


def engine_of(source: str | None) -> Engine:
    options = EngineOptions(cache_bytes=64 * MIB, max_sequences=NUM_ROWS, max_batch_tokens=512, max_context=1024)
    if source is None:
        return Engine(stub_model(), StubKernels(NUM_ROWS), options)
    model = load_model(source)
    return Engine(model, choose(model.config, model.weights, options.block_size), options)


def requests(vocab_size: int) -> Iterator[Request]:
    """Prompts that begin alike and end apart; lengths, tenants, adapters, priorities and settings in turn."""
    rng = np.random.default_rng(0)
    shared = tuple(rng.integers(0, vocab_size, 200).tolist())
    for number in count():
        prompt = shared[: number % 7 * 30] + tuple(rng.integers(0, vocab_size, 1 + number % 40).tolist())
        sampling = Sampling(
            max_tokens=1 + number * 13 % 160,
            temperature=number % 3 / 2,
            top_p=0.9,
            n=1 + (number % 11 == 0),
            ignore_eos=True,
        )
        adapter = (None, *ADAPTERS)[number % 4]
        yield Request(f"r{number}", prompt, sampling, adapter, f"t{number % 50}", number % 3 - 1)


def resident_bytes() -> int:
    """What the process holds now; the most it has held where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmRSS:")[2].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(engine: Engine, num_tokens: int) -> None:
    coming, number, told = requests(engine.model.config.vocab_size), 0, 0
    adapters = [made_up_adapter(engine.model.config, 4, seed) for seed in range(len(ADAPTERS))]
    for name, adapter in zip(ADAPTERS, adapters, strict=True):
        engine.attach(name, adapter)
    print(f"{'tokens':>10}{'requests':>10}{'steps':>9}{'seconds':>9}{'RSS MiB':>9}{'MLX MiB':>9}{'objects':>10}")
    started = time.perf_counter()
    while told <= 10:
        while engine.scheduler.num_waiting < 4:
            engine.add(next(coming))
            number += 1
            if number % 17 == 0:
                engine.abort(f"r{number - 9}")
            if number % 500 == 0:
                engine.attach(ADAPTERS[number // 500 % 3], adapters[number // 500 % 3])
        engine.step()
        stats = engine.stats()
        if stats.generated_tokens + stats.prompt_tokens >= num_tokens * told / 10:
            gc.collect()
            seconds, resident = time.perf_counter() - started, resident_bytes() / MIB
            done = stats.generated_tokens + stats.prompt_tokens
            print(
                f"{done:>10}{stats.finished_requests:>10}{stats.steps:>9}{seconds:>9.1f}{resident:>9.1f}"
                f"{mx.get_active_memory() / MIB:>9.1f}{sys.getallocatedblocks():>10}",
                flush=True,
            )
            told += 1


@told_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--tokens", type=at_least(1), default=1_000_000)
    arguments = parser.parse_args()
    run(engine_of(arguments.model), arguments.tokens)


if __name__ == "__main__":
    main()
