"""The CPU kernels beside llama.cpp and mlx-lm: same weights, same prompts, turn by turn in one run.

    python -m benchmarks.cpu --llama-python /path/to/venv/bin/python      # SmolLM2, or --model FILE.gguf
    python -m benchmarks.cpu --made-up qwen2-1.5b

llama.cpp is taken from whatever environment `--llama-python` names, this one by default. To make one that is built for
this machine: `python -m venv v && v/bin/pip install --no-binary llama-cpp-python llama-cpp-python numpy`.
Without it, its columns stay empty.

Each figure is the best of some rounds in which the systems take turns, so that what other programs do meanwhile
disturbs both alike and the least; a decoding round counts as its median step. (mlx-lm, which is slow here, has one
round, of three steps.) The machine's limits, bytes read and float operations a second, are measured in the same run,
and every figure of ours is given as a part of both.

What other programs do to the memory changes within seconds, and a long context feels it more than a short one. So what
a token costs at 4,000 tokens of context, against one at 100, has a line of its own: both streams are there from the
beginning and have the machine for some steps each, in turn. It is the median of all turns' ratios.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from benchmarks.command_line import at_least, told_in_a_sentence
from benchmarks.made_up_gguf import write_made_up
from benchmarks.peers import LlamaCpp, MlxLm
from engine.batch import Batch, Chunk, Numbers
from engine.cache import KVCache, block_bytes
from engine.kernels.cpu import missing_reason
from engine.options import EngineOptions
from engine.refusal import Refusal
from engine.weights import Model, Weights
from loaders.checkpoint import load_model
from loaders.progress import ignore_progress
from loaders.sources import locate

with told_in_a_sentence():
    if (reason := missing_reason()) is not None:
        raise Refusal(reason)

from engine.kernels.cpu import _native
from engine.kernels.cpu.column import CpuKernels
from engine.kernels.cpu.packed import PackedTensor

BLOCK = 16


@dataclass(frozen=True, slots=True)
class Work:
    """What is timed: a step of some streams at a length of context, or a prompt up to its first token."""

    name: str
    method: Literal["decode", "prefill"]
    given: tuple[int, ...]  # streams, prompt, steps; or the prompt
    tokens: int  # that the time is for

    @property
    def num_outputs(self) -> int:
        """Rows that go through the head."""
        return self.tokens if self.method == "decode" else 1

    @property
    def num_before(self) -> int:
        """Tokens whose keys and values a decoding step reads."""
        return self.given[0] * self.given[1] if self.method == "decode" else 0

    @property
    def few(self) -> tuple[int, ...]:
        """The same with three steps, for who is slow."""
        return (*self.given[:2], 3) if self.method == "decode" else self.given


WORKS = (
    Work("1 stream", "decode", (1, 16, 64), 1),
    Work("16 streams", "decode", (16, 16, 32), 16),
    Work("prompt of 512", "prefill", (512,), 512),
    Work("prompt of 16", "prefill", (16,), 16),
    Work("1 stream at 100", "decode", (1, 100, 32), 1),
    Work("1 stream at 4000", "decode", (1, 4000, 16), 1),
)


class Ours:
    """The column as the engine runs it: a step is launched before the one before is read."""

    def __init__(self, model: Model) -> None:
        self.kernels = CpuKernels(model.config, BLOCK, takes_weights=True)
        self.weights = self.kernels.prepare(model.weights)
        self.config = model.config

    def launch(
        self, cache: KVCache, tables: np.ndarray, tokens: mx.array, positions: np.ndarray, chunk: bool
    ) -> mx.array:
        count = len(positions)
        sequence_of = np.zeros(count, np.int32) if chunk else np.arange(count, dtype=np.int32)
        batch = Batch(
            tokens=tokens,
            numbers=Numbers.of(
                positions=mx.array(positions),
                slots=mx.array(tables[sequence_of, positions // BLOCK] * BLOCK + positions % BLOCK),
                sequence_of=mx.array(sequence_of),
                block_tables=mx.array(tables),
                output_rows=mx.array([count - 1]) if chunk else mx.array(sequence_of),
                adapter_of=None,
            ),
            num_decode_rows=0 if chunk else count,
            max_decode_context=0,
            chunks=(Chunk(0, count, int(positions[-1]) + 1, 0),) if chunk else (),
        )
        x = self.kernels.embed(self.weights, batch.tokens)
        x = self.kernels.layers(x, self.weights, cache, batch, None)
        logits = self.kernels.logits(x, self.weights, batch.numbers.output_rows)
        drawn = self.kernels.draw(logits, np.zeros((logits.shape[0], 5), np.float32), is_greedy=True, is_filtered=False)
        mx.async_eval(drawn)
        return drawn

    def decode(self, num_sequences: int, prompt: int, tokens: int) -> float:
        """Seconds of a step that gives every sequence one token."""
        return statistics.median(Streams(self, num_sequences, prompt, tokens).steps(tokens)[2:])

    def new_cache(self) -> KVCache:
        """As large as an engine's, and like it written by nobody."""
        num_blocks = EngineOptions().cache_bytes // block_bytes(self.config, BLOCK, self.kernels.cache_dtype)
        cache = KVCache(self.config, num_blocks, BLOCK, self.kernels.cache_dtype)
        self.kernels.warm_up(self.weights, cache, 1, 1)
        return cache

    def prefill(self, prompt: int) -> float:
        """Seconds from a prompt to its first token."""
        tables = np.arange(-(-prompt // BLOCK), dtype=np.int32)[None]
        cache = self.new_cache()
        began, drawn = time.perf_counter(), mx.zeros((1,))
        for first in range(0, prompt, 512):
            positions = np.arange(first, min(prompt, first + 512), dtype=np.int32)
            drawn = self.launch(cache, tables, mx.array(positions * 7 % 1000), positions, True)
        np.array(drawn)
        return time.perf_counter() - began


class Streams:
    """Some sequences that are decoded together, behind prompts of one length."""

    def __init__(self, ours: Ours, count: int, prompt: int, tokens: int) -> None:
        width = -(-(prompt + tokens + 1) // BLOCK)
        self.tables = np.arange(count * width, dtype=np.int32).reshape(count, width)
        self.ours, self.prompt, self.cache, drawn = ours, prompt, ours.new_cache(), []
        for sequence, line in enumerate(self.tables):
            for first in range(0, prompt, 512):
                positions = np.arange(first, min(prompt, first + 512), dtype=np.int32)
                ids = mx.array((positions * 7 + sequence) % 1000)
                last = ours.launch(self.cache, line[None], ids, positions, True)
            drawn.append(last)
        self.current = mx.concatenate(drawn)
        mx.eval(self.current)

    def steps(self, count: int) -> list[float]:
        """Seconds of each step; they begin behind the prompt every time."""
        seconds = []
        for step in range(count):
            began = time.perf_counter()
            positions = np.full(len(self.tables), self.prompt + step, np.int32)
            following = self.ours.launch(self.cache, self.tables, self.current, positions, False)
            np.array(self.current)
            self.current = following
            seconds.append(time.perf_counter() - began)
        return seconds


def limits(num_threads: int) -> tuple[float, float]:
    """Bytes read, and float operations, that this machine does in a second with so many threads."""
    big = [np.ones(24 << 20, np.float32) for _ in range(num_threads)]
    square = [np.ones((1024, 1024), np.float32) for _ in range(num_threads)]

    def best(work: Callable[[np.ndarray], Any], on: list[np.ndarray]) -> float:
        with ThreadPoolExecutor(num_threads) as threads:
            seconds = []
            for _ in range(5):
                began = time.perf_counter()
                list(threads.map(work, on))
                seconds.append(time.perf_counter() - began)
        return min(seconds)

    bytes_read = sum(a.nbytes for a in big) / best(lambda a: a.max(), big)
    flops = num_threads * 2 * 1024**3 / best(lambda a: a @ a, square)
    return bytes_read, flops


def weights_bytes(weights: Weights) -> int:
    """What every step must read."""
    matrices = [tensor for name, tensor in weights.named() if isinstance(tensor, PackedTensor)]
    tables = 0 if weights.lm_head is None else weights.embed_tokens.num_bytes  # type: ignore[attr-defined]
    return sum(tensor.num_bytes for tensor in matrices) - tables


def slot_bytes(ours: Ours) -> float:
    """Of one token's keys and values, in all layers."""
    return block_bytes(ours.config, BLOCK, ours.kernels.cache_dtype) / BLOCK


def flops_of(weights: Weights, is_with_head: bool) -> int:
    """Float operations of one row."""
    named = {name: t.matrix.shape for name, t in weights.named() if isinstance(t, PackedTensor)}
    head = named.pop("lm_head.weight", named["model.embed_tokens.weight"])
    named.pop("model.embed_tokens.weight")
    return 2 * (sum(r * c for r, c in named.values()) + (head[0] * head[1] if is_with_head else 0))


def cost_of_context(ours: Ours, turns: int = 40, steps: int = 20) -> list[float]:
    """How many times a step at 100 tokens of context one at 4,000 takes, in each turn."""
    short, long = (Streams(ours, 1, prompt, steps) for prompt in (100, 4000))
    ratios = []
    for _ in range(turns + 1):
        seconds = [statistics.median(streams.steps(steps)[2:]) for streams in (short, long)]
        ratios.append(seconds[1] / seconds[0])
    return sorted(ratios[1:])


@told_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--model", default="smollm2", help="a GGUF file")
    models.add_argument("--made-up", choices=["qwen2-1.5b"], help="a random model of this shape instead")
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has llama-cpp-python")
    parser.add_argument("--mlx-lm", action="store_true", help="measure mlx-lm too: slow")
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--threads", type=at_least(0), default=0, help="0: as many as this process may use cores")
    parser.add_argument("--works", nargs="+", choices=[work.name for work in WORKS], help="these alone")
    chosen = parser.parse_args()
    mx.set_default_device(mx.cpu)
    _native.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as directory:
        if chosen.made_up:
            path = write_made_up(Path(directory) / "made-up.gguf", chosen.made_up)
        else:
            path = locate(chosen.model, ignore_progress)
        measure(path, chosen)


def measure(path: Path, chosen: argparse.Namespace) -> None:
    threads = _native.num_threads()
    mlx_lm = MlxLm(load_model(str(path))) if chosen.mlx_lm else None
    ours = Ours(load_model(str(path)))
    try:
        llama = LlamaCpp(chosen.llama_python, path, threads)
    except OSError:
        llama = None
        print("llama.cpp does not run here; see --help for how to get it")
    print(f"{threads} threads, {_native.instruction_set()}, {weights_bytes(ours.weights) / 1e6:.0f} MB of weights")
    works = [work for work in WORKS if not chosen.works or work.name in chosen.works]
    mine, theirs = {work: list[float]() for work in works}, {work: list[float]() for work in works}
    machine = []
    for number in range(chosen.rounds):
        for work in works:
            mine[work].append(getattr(ours, work.method)(*work.given))
            if llama is not None:
                theirs[work].append(llama.ask(work.method, *work.given))
            machine.append(limits(threads))
        print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr, flush=True)
    bytes_per_second, flops = (max(column) for column in zip(*machine, strict=True))
    print("work               ours tok/s   ms    llama.cpp  ratio   mlx-lm    of bytes/s  of flop/s")
    for work in works:
        slow = [] if mlx_lm is None else [getattr(mlx_lm, work.method)(*work.few)]
        seconds, speeds = min(mine[work]), [work.tokens / min(t) if t else float("nan") for t in (theirs[work], slow)]
        body, whole = flops_of(ours.weights, False), flops_of(ours.weights, True)
        done = work.tokens * body + work.num_outputs * (whole - body)
        read = weights_bytes(ours.weights) + work.num_before * slot_bytes(ours)
        print(
            f"{work.name:17} {work.tokens / seconds:10.1f} {seconds * 1e3:8.1f} {speeds[0]:9.1f}"
            f" {work.tokens / seconds / speeds[0]:6.2f} {speeds[1]:8.1f}"
            f" {read / seconds / bytes_per_second:12.0%} {done / seconds / flops:10.0%}",
            flush=True,
        )
    print(f"limits: {bytes_per_second / 1e9:.1f} GB/s read, {flops / 1e9:.0f} GFLOP/s")
    if any(work.num_before >= 4000 for work in works):
        ratios = cost_of_context(ours)
        print(
            f"a token at 4,000 tokens of context costs {statistics.median(ratios):.2f} times one at 100"
            f" ({len(ratios)} turns, half of them {ratios[len(ratios) // 4]:.2f} to {ratios[len(ratios) * 3 // 4]:.2f})"
        )


if __name__ == "__main__":
    main()
