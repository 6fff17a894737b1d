"""SIGKILLs under load: every answer is compared, token by token, with that of an engine which nobody disturbed.

    python -m benchmarks.chaos --kills 500 --requests 20000 --parts model
    python -m benchmarks.chaos --kills 100 --parts model request supervisor pair
    python -m benchmarks.chaos --kills 20 --model smollm2 --spares 1

Streams of every kind are kept open (greedy, seeded, four choices, stop strings, logprobs, penalties, two adapters). A
zero is printed with the largest rate that it leaves possible at 95 %: three divided by the sample.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors import chaos, process, system
from actors.client import Client
from actors.model_loading import ModelChoice
from actors.node import whereis
from actors.progress import glance, progress_path
from actors.refusals import Overloaded
from actors.system_config import ROOT, SystemConfig
from engine.engine import Engine, EngineOptions
from engine.request import Request
from engine.sequence import seed_of
from tests.engines import Answer, serve
from tests.serving import make_engine, mixed_requests, read_adapter, tiny_choice, words_of

NUM_DISTINCT = 200  # requests, asked again and again under new ids


@dataclass
class Findings:
    """What the readers saw. Guarded by its lock."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    last_token_at: float = 0.0
    tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, num_tokens: int) -> None:
        with self.lock:
            self.tokens += num_tokens
            self.last_token_at = time.monotonic()

    def judge(self, name: str, answer: Answer, expected: Answer) -> None:
        with self.lock:
            self.counts["requests"] += 1
            if (answer.choices, answer.reasons) == (expected.choices, expected.reasons):
                return
            self.counts["different"] += 1
            self.wrong.append(name)

    def failed(self, name: str, failure: Exception) -> None:
        with self.lock:
            self.counts["requests"] += 1
            self.counts["lost"] += 1
            self.wrong.append(f"{name}: {failure!r}")


class Load:
    """So many streams, always open, until it is told to finish."""

    def __init__(self, client: Client, expected: dict[str, Answer], requests: list[Request], streams: int) -> None:
        self.client = client
        self.expected = expected
        self.requests = requests
        self.findings = Findings()
        self.is_over = threading.Event()
        self._numbers = iter(range(10**9))
        self._threads = [threading.Thread(target=self.read, daemon=True) for _ in range(streams)]
        for thread in self._threads:
            thread.start()

    def read(self) -> None:
        while not self.is_over.is_set():
            with self.findings.lock:
                number = next(self._numbers)
            request = self.requests[number % len(self.requests)]
            name = f"{request.id}/{number}"
            try:
                self.findings.judge(name, self.read_one(name, request), self.expected[request.id])
            except Overloaded as refusal:
                time.sleep(refusal.retry_after_seconds)
            except Exception as failure:
                self.findings.failed(name, failure)

    def read_one(self, name: str, request: Request) -> Answer:
        answer = Answer()
        for piece in self.client.stream(id=name, **words_of(request)):
            tokens = answer.choices.setdefault(piece.choice, [])
            if piece.position != len(tokens):
                raise AssertionError(f"position {piece.position} where {len(tokens)} was next")
            tokens += piece.tokens
            self.findings.saw(len(piece.tokens))
            if piece.finish_reason is not None:
                answer.reasons[piece.choice] = piece.finish_reason
        return answer

    def finish(self, seconds: float) -> int:
        """Open nothing new, and wait; how many streams never ended."""
        self.is_over.set()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return sum(thread.is_alive() for thread in self._threads)


@dataclass
class Gap:
    """One kill: from the signal to the next token that any client saw, and to a model server that is ready."""

    part: str
    next_token: float


def strike(part: str, number: int) -> str:
    """Kill one of them, or two at once."""
    parts = random.sample(["model", "request", "supervisor"], 2) if part == "pair" else [part]
    for each in parts:
        wait_for(lambda each=each: bool(chaos.parts(each)))
    return " and ".join(str(chaos.kill(each, number)) for each in parts)  # type: ignore[arg-type]


def storm(load: Load, config: SystemConfig, parts: list[str], kills: int, calm_seconds: float) -> list[Gap]:
    """One kill after the other, each at a random moment after the one before was got over."""
    gaps: list[Gap] = []
    for number in range(kills):
        time.sleep(random.uniform(0.0, calm_seconds))
        part = parts[number % len(parts)]
        wait_for(lambda: is_ready(config) and is_whole(config))
        began = time.monotonic()
        strike(part, number)
        wait_for(lambda began=began: load.findings.last_token_at > began + 0.05)
        gaps.append(Gap(part, load.findings.last_token_at - began))
    return gaps


def is_ready(config: SystemConfig) -> bool:
    for name in config.model_names:
        pid = whereis(name)
        seen = None if pid is None else glance(progress_path(Path(config.directory), str(pid)))
        if seen is not None and seen.is_ready:
            return True
    return False


def is_whole(config: SystemConfig) -> bool:
    """Whether every process of the tree is there."""
    names = (ROOT, f"{ROOT}.models", f"{ROOT}.requests", *config.model_names, *config.partition_names)
    return all(whereis(name) is not None for name in names)


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            tree = system.status()
            raise TimeoutError(f"the system did not come back: {None if tree is None else tree.to_dict()}")
        time.sleep(0.01)


def undisturbed(engine: Engine, choice: ModelChoice, requests: list[Request]) -> dict[str, Answer]:
    for name, path in choice.adapters:
        engine.attach(name, read_adapter(path, engine.model))
    answers: dict[str, Answer] = {}
    for start in range(0, len(requests), 32):
        answers |= serve(engine, requests[start : start + 32])
    return answers


def choice_of(model: str, directory: Path) -> ModelChoice:
    if model == "tiny":
        return tiny_choice(directory)
    options = EngineOptions(cache_bytes=256 << 20)
    adapters = (("red", "1"), ("blue", "2"))
    return ModelChoice(model, options, adapters, read_adapter="tests.serving:read_adapter")


def seeded(request: Request) -> Request:
    """With the seed that its id gives it, so that it may be asked under any id."""
    return replace(request, sampling=replace(request.sampling, seed=seed_of(request)))


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def bound(found: int, sample: int) -> str:
    return f"{found} of {sample}" + (f" (95 %: below {3 / sample:.1e})" if not found and sample else "")


def report(load: Load, gaps: list[Gap], stuck: int, counts: Counter[str], loads: dict[str, int]) -> dict[str, Any]:
    findings = load.findings
    told: dict[str, Any] = {
        "kills": len(gaps),
        "requests lost or never ended": bound(findings.counts["lost"] + stuck, findings.counts["requests"] + stuck),
        "requests with other tokens": bound(findings.counts["different"], findings.counts["requests"]),
        "tokens compared": findings.tokens,
        "stale events dropped": counts["stale_events"],
        "duplicates dropped": counts["duplicate_events"],
        "gaps in what model servers told": counts["gaps"],
        "falsely poisoned": counts["poisoned"],
        "lives of the model server, by kind of kill": loads,
    }
    for part in dict.fromkeys(gap.part for gap in gaps):
        seconds = [gap.next_token for gap in gaps if gap.part == part]
        told[f"{part}: kill to next token, s"] = {
            "p50": round(quantile(seconds, 0.5), 3),
            "p99": round(quantile(seconds, 0.99), 3),
            "worst": round(max(seconds), 3),
        }
    return told | ({"wrong": findings.wrong[:10]} if findings.wrong else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--requests", type=int, default=0, help="go on under load until so many are answered")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--parts", nargs="+", default=["model"], choices=["model", "request", "supervisor", "pair"])
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--spares", type=int, default=0)
    parser.add_argument("--calm", type=float, default=1.0, help="seconds between two kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    process.connect()
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(run(args, Path(directory)), indent=2))
    process.disconnect()


def run(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    choice = choice_of(args.model, directory)
    requests = [seeded(request) for request in mixed_requests(NUM_DISTINCT, args.tokens)]
    from actors.model_loading import function_at

    engine = make_engine(choice) if args.model == "tiny" else function_at(choice.make_engine)(choice)
    expected = undisturbed(engine, choice, requests)
    config = SystemConfig(
        choice, str(directory / "state"), partitions=args.partitions, spares=args.spares, max_restarts=10**6
    )
    client = system.start_system(config)
    load = Load(client, expected, requests, args.streams)
    wait_for(lambda: load.findings.tokens > 0)
    gaps: list[Gap] = []
    loads: dict[str, int] = {}
    for part in args.parts:
        before = lives(config)
        gaps += storm(load, config, [part], args.kills, args.calm)
        loads[part] = lives(config) - before
    wait_for(lambda: load.findings.counts["requests"] >= args.requests, 3600.0)
    stuck = load.finish(120.0)
    counts: Counter[str] = Counter()
    for found in client.stats():
        counts.update(found.counts)
    told = report(load, gaps, stuck, counts, loads)
    client.close()
    system.stop()
    return told


def lives(config: SystemConfig) -> int:
    wait_for(lambda: is_ready(config))
    return sum(pid.epoch for name in config.model_names if (pid := whereis(name)) is not None)


if __name__ == "__main__":
    main()
