"""What the process layer costs: throughput, time to first token and calls a second, against the same engine bare.

    python -m benchmarks.handles                     # the default model
    python -m benchmarks.handles --model DIR --streams 32 --tokens 64
    python -m benchmarks.handles --model tiny        # two random layers: what a step costs around the engine

The two are measured in turns in one run, so that whatever else the machine does falls on both, with the same prompts:
those of many streams are in both caches, that of a first token is in none.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import ray

from actors import process, system
from actors.client import Client
from actors.model_choice import ModelChoice, function_at
from actors.node import call, whereis
from actors.polls import Poll
from actors.system_config import SystemConfig
from benchmarks.command_line import at_least, told_in_a_sentence
from engine.engine import Engine
from engine.event import TokenEvent
from engine.options import EngineOptions
from engine.request import Request, Sampling


class Empty:
    """The yardstick: an actor of Ray's that answers and does nothing."""

    def answer(self) -> None: ...


def choice_of(model: str, directory: Path) -> ModelChoice:
    if model != "tiny":
        return ModelChoice(model, EngineOptions(cache_bytes=256 << 20))
    from tests.serving import tiny_choice

    return tiny_choice(directory)


def prompt_of(number: int, length: int = 24) -> tuple[int, ...]:
    return tuple(3 + (number * 37 + place * 11) % 240 for place in range(length))


def bare_throughput(engine: Engine, name: str, streams: int, tokens: int) -> float:
    for number in range(streams):
        sampling = Sampling(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        engine.add(Request(f"{name}-{number}", prompt_of(number), sampling))
    began, count = time.perf_counter(), 0
    while engine.has_work:
        count += sum(isinstance(event, TokenEvent) for event in engine.step())
    return count / (time.perf_counter() - began)


def served_throughput(client: Client, name: str, streams: int, tokens: int, is_whole: bool) -> float:
    counts = [0] * streams

    def read(number: int) -> None:
        words = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
        if is_whole:
            counts[number] = len(client.generate(prompt_of(number), id=f"{name}-{number}", **words).tokens)
        else:
            for piece in client.stream(prompt_of(number), id=f"{name}-{number}", **words):
                counts[number] += len(piece.tokens)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(streams)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def bare_first_token(engine: Engine, name: str, number: int) -> float:
    engine.add(Request(name, prompt_of(number), Sampling(max_tokens=4, temperature=0.0, ignore_eos=True)))
    began, first = time.perf_counter(), 0.0
    while engine.has_work:
        if any(isinstance(event, TokenEvent) for event in engine.step()) and not first:
            first = time.perf_counter() - began
    return first


def served_first_token(client: Client, name: str, number: int) -> float:
    began = time.perf_counter()
    stream = iter(client.stream(prompt_of(number), id=name, max_tokens=4, temperature=0.0, ignore_eos=True))
    next(stream)
    first = time.perf_counter() - began
    for _ in stream:
        pass
    return first


def calls_a_second(call: Callable[[], object], seconds: float = 2.0) -> float:
    """With one caller, one call after the other."""
    count, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        call()
        count += 1
    return count / seconds


@told_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", type=at_least(1), default=32)
    parser.add_argument("--tokens", type=at_least(1), default=48)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    process.connect()
    with tempfile.TemporaryDirectory() as directory:
        choice = choice_of(args.model, Path(directory))
        client = system.start_system(SystemConfig(choice, directory))
        engine: Engine = function_at(choice.make_engine)(choice)
        figures = measure(client, engine, args)
        client.close()
        system.stop()
    process.disconnect()
    print(
        json.dumps(figures, indent=2) if args.json else "\n".join(f"{key:42} {value}" for key, value in figures.items())
    )


def measure(client: Client, engine: Engine, args: argparse.Namespace) -> dict[str, Any]:
    bare, streamed, whole, first_bare, first_served, empty, partition = ([] for _ in range(7))
    yardstick: Any = ray.remote(Empty).remote()
    server = whereis("genserve.requests.requests-0")
    assert server is not None
    bare_throughput(engine, "b", args.streams, args.tokens)  # untimed, as prompts are read only this once
    served_throughput(client, "s", args.streams, args.tokens, is_whole=True)
    for turn in range(args.rounds):
        bare.append(bare_throughput(engine, f"b{turn}", args.streams, args.tokens))
        streamed.append(served_throughput(client, f"s{turn}", args.streams, args.tokens, is_whole=False))
        whole.append(served_throughput(client, f"w{turn}", args.streams, args.tokens, is_whole=True))
        for number in range(args.streams + 7 * turn, args.streams + 7 * turn + 7):
            first_bare.append(bare_first_token(engine, f"fb{number}", number))
            first_served.append(served_first_token(client, f"fs{number}", number))
        empty.append(calls_a_second(lambda: ray.get(yardstick.answer.remote())))
        partition.append(calls_a_second(lambda: call(server, Poll({}, wait_seconds=0))))
    return {
        "bare engine, tokens/s": round(median(bare), 1),
        "streams, tokens/s": round(median(streamed), 1),
        "whole answers, tokens/s": round(median(whole), 1),
        "streams / bare": round(median(streamed) / median(bare), 3),
        "whole / bare": round(median(whole) / median(bare), 3),
        "first token bare, ms": round(median(first_bare) * 1e3, 1),
        "first token served, ms": round(median(first_served) * 1e3, 1),
        "first token more, ms": round((median(first_served) - median(first_bare)) * 1e3, 1),
        "empty Ray actor, calls/s": round(median(empty), 1),
        "partition, calls/s": round(median(partition), 1),
        "partition / empty": round(median(partition) / median(empty), 3),
    }


if __name__ == "__main__":
    main()
