"""What a batch costs and survives: `python -m benchmarks.batch speed|turns|crashes|memory`.

speed     tokens a second through a whole batch, beside the bare engine with as many rows, and the engine inline
turns     the same of a batch on Ray and the bare engine, each for six seconds in turn while the other one stands still
crashes   2,000 lines, the model's process killed five times and the batch once, against an undisturbed run
memory    a batch of 1,000 lines and one of 100,000, of a stub that answers at once
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

from actors.model_choice import ModelChoice
from actors.model_loading import make_engine
from benchmarks.command_line import at_least, told_in_a_sentence
from benchmarks.turns import standing_still
from deploy.jobs.asked import asked_plainly
from deploy.jobs.carrying_out import carry_out
from deploy.jobs.inline_serving import inline as inline_serving
from deploy.jobs.meter import Figures
from deploy.jobs.order import add_arguments, order_of
from engine.engine import Engine
from engine.event import Event, TokenEvent
from engine.options import EngineOptions
from engine.request import Request, Sampling
from loaders.progress import OnProgress, ignore_progress
from loaders.sources import locate
from tests.batch_chaos import disturbed, prompts, texts, tiny_model, undisturbed
from tests.batches import StubAnswers, run_batch, write_lines
from tests.ray_cluster import ROOT, started_cluster

TURN_SECONDS = 6.0
MOST_TOKENS = 40  # of a line


def speed(model: str, num_lines: int, batch_size: int, rounds: int) -> None:
    """Each way in turn, several times. A round lies within a minute or two, so its own ratios are of one machine."""
    choice = ModelChoice(str(locate(model, ignore_progress)), EngineOptions(max_sequences=batch_size))
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, measure in (("bare engine", bare), ("batch, inline", inline), ("batch, on Ray", on_ray)):
            found.setdefault(name, []).append(measure(choice, num_lines, batch_size))
            print(f"{name:15}{found[name][-1]:8.1f} tokens/s", flush=True)
    of_bare = found["bare engine"]
    for name, each in found.items():
        ratio = median(one / engine for one, engine in zip(each, of_bare, strict=True))
        print(
            f"best of {rounds}, {name:15}{max(each):8.1f} tokens/s, {max(each) / max(of_bare):6.1%} "
            f"of the bare engine, {ratio:6.1%} at the median round"
        )


def lines(num_lines: int) -> Iterator[dict[str, Any]]:
    """Ids that never end early, so that every way makes the same number of tokens."""
    for number in range(num_lines):
        prompt = [100 + (number * 31 + place * 7) % 5000 for place in range(24 + number % 16)]
        yield {"prompt": prompt, "max_tokens": 24 + number % 16, "ignore_eos": True, "temperature": 0.8}


def requests(num_lines: int) -> Iterator[Request]:
    for number, line in enumerate(lines(num_lines)):
        sampling = Sampling(max_tokens=line["max_tokens"], ignore_eos=True, temperature=0.8, seed=number)
        yield Request(str(number), tuple(line["prompt"]), sampling)


def bare(choice: ModelChoice, num_lines: int, batch_size: int) -> float:
    engine = make_engine(choice)
    for request in requests(num_lines):
        engine.add(request)
    began, num_tokens = time.monotonic(), 0
    while engine.has_work:
        num_tokens += num_tokens_of(engine.step())
    return num_tokens / (time.monotonic() - began)


def num_tokens_of(events: list[Event]) -> int:
    return sum(isinstance(event, TokenEvent) for event in events)


def inline(choice: ModelChoice, num_lines: int, batch_size: int) -> float:
    with TemporaryDirectory() as place:
        source = write_lines(Path(place, "in.jsonl"), lines(num_lines))
        with inline_serving(choice) as served:
            began = time.monotonic()
            book = run_batch(source, Path(place, "out.jsonl"), served.answers, max_in_flight=2 * batch_size)
            return book.tally.completion_tokens / (time.monotonic() - began)


class Listener:
    """Keeps the last figures."""

    def __init__(self) -> None:
        self.tokens_per_second = 0.0

    def say(self, sentence: str) -> None: ...

    def show(self, figures: Figures) -> None:
        self.tokens_per_second = figures.tokens_per_second

    def load(self) -> OnProgress:
        return ignore_progress


def on_ray(choice: ModelChoice, num_lines: int, batch_size: int) -> float:
    parser, listener = argparse.ArgumentParser(), Listener()
    add_arguments(parser)
    with TemporaryDirectory() as place:
        source = write_lines(Path(place, "in.jsonl"), lines(num_lines))
        words = [str(source), f"{place}/out.jsonl", "--model", choice.source, "--batch-size", str(batch_size)]
        assert carry_out(order_of(parser.parse_args(words)), listener) == 0
    return listener.tokens_per_second


def turns(model: str, num_turns: int, batch_size: int) -> None:
    """The batch is the command that users give; its tokens are those of the answers that it has written."""
    choice = ModelChoice(str(locate(model, ignore_progress)), EngineOptions(max_sequences=batch_size))
    engine, more = make_engine(choice), requests(sys.maxsize)
    pairs = list[tuple[float, float]]()
    with TemporaryDirectory() as place:
        output = Path(place, "out.jsonl")
        source = write_lines(Path(place, "in.jsonl"), lines(1000 * num_turns + 20 * batch_size))
        words = ["batch", str(source), str(output), "--model", choice.source, "--batch-size", str(batch_size)]
        with subprocess.Popen(
            [sys.executable, "-m", "deploy.cli.main", *words], cwd=ROOT, stderr=subprocess.DEVNULL
        ) as batch:
            try:
                while not output.exists() or num_written(output) < MOST_TOKENS * batch_size:
                    assert batch.poll() is None, "the batch ended before it began"
                    time.sleep(0.1)
                for _ in range(num_turns):
                    with standing_still(batch.pid):
                        of_engine = step_for(engine, more, TURN_SECONDS)
                    before, began = num_written(output), time.monotonic()
                    time.sleep(TURN_SECONDS)
                    pairs.append((of_engine, (num_written(output) - before) / (time.monotonic() - began)))
                    assert batch.poll() is None, "the batch ended before the last turn"
            finally:
                batch.terminate()
    show_turns(pairs)


def step_for(engine: Engine, more: Iterator[Request], seconds: float) -> float:
    """Tokens a second of an engine that never runs short of requests."""
    began, num_tokens = time.monotonic(), 0
    while time.monotonic() < began + seconds:
        while engine.scheduler.num_waiting < engine.scheduler.max_sequences:
            engine.add(next(more))
        num_tokens += num_tokens_of(engine.step())
    return num_tokens / (time.monotonic() - began)


def num_written(output: Path) -> int:
    """Tokens of the answers in a file; its last line may be half written."""
    whole = output.read_bytes().rpartition(b"\n")[0].splitlines()
    return sum(json.loads(line)["usage"]["completion_tokens"] for line in whole)


def show_turns(pairs: list[tuple[float, float]]) -> None:
    """As a whole, and by fifths of the time, which tell how far that can be relied on."""
    size = -(-len(pairs) // 5)
    engine, batch = mean(one for one, _ in pairs), mean(other for _, other in pairs)
    parts = [pairs[first : first + size] for first in range(0, len(pairs), size)]
    ratios = [sum(other for _, other in part) / sum(one for one, _ in part) for part in parts]
    print(
        f"{len(pairs)} turns: bare engine {engine:.1f} tokens/s, batch, on Ray {batch:.1f} tokens/s, "
        f"{batch / engine:.1%} of the bare engine; by fifths {', '.join(f'{ratio:.1%}' for ratio in ratios)}"
    )


def crashes(num_lines: int) -> None:
    with TemporaryDirectory() as place, started_cluster(has_jobs=False) as cluster:
        directory = Path(place)
        model, source = tiny_model(directory), write_lines(directory / "in.jsonl", prompts(num_lines, 48))
        expected = undisturbed(source, directory / "undisturbed.jsonl", model)
        came_to = disturbed(cluster, source, directory / "out.jsonl", model, num_lines, model_kills=5, batch_kills=1)
        answers = texts(directory / "out.jsonl")
    differing = sum(answers.get(name) != text for name, text in expected.items())
    print(
        f"{num_lines} lines, {came_to.model_kills} model processes and {came_to.batch_kills} batch killed, "
        f"{came_to.seconds:.0f} s: exit code {came_to.exit_code}, {len(answers)} answers, none twice, "
        f"{len(expected.keys() - answers.keys())} missing, {differing} different from the undisturbed run"
    )


def memory() -> None:
    """Each in a process of its own, as a process's peak never falls."""
    for count in (1_000, 100_000):
        command = [sys.executable, "-m", "benchmarks.batch", "memory-of", str(count)]
        found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        print(f"{count:8,} lines: {found['mib']:6.1f} MiB at the peak, {count / found['seconds']:8,.0f} lines/s")


def memory_of(count: int) -> None:
    with TemporaryDirectory() as place:
        source = Path(place, "in.jsonl")
        with source.open("w") as file:
            for number in range(count):
                file.write(json.dumps({"custom_id": f"line-{number}", "prompt": f"prompt {number}"}) + "\n")
        began = time.monotonic()
        book = run_batch(source, Path(place, "out.jsonl"), StubAnswers(), max_in_flight=128, ask=plainly)
        seconds = time.monotonic() - began
    assert book.tally.answered == count
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"mib": peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), "seconds": seconds}))


def plainly(line: Any) -> Any:
    return asked_plainly(line, {})


@told_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "turns", "crashes", "memory", "memory-of"))
    parser.add_argument("count", type=at_least(1), nargs="?", help="lines, or turns")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch-size", type=at_least(1), default=64)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    given = parser.parse_args()
    if given.what == "memory-of" and given.count is None:
        parser.error("memory-of wants to know of how many lines")
    match given.what:
        case "speed":
            speed(given.model, given.count or 256, given.batch_size, given.rounds)
        case "turns":
            turns(given.model, given.count or 20, given.batch_size)
        case "crashes":
            crashes(given.count or 2_000)
        case "memory":
            memory()
        case "memory-of":
            memory_of(given.count)


if __name__ == "__main__":
    main()
