"""What a batch costs and survives: `python -m benchmarks.batch speed|crashes|memory`.

speed     tokens a second through a whole batch, beside the bare engine with as many rows, and the engine inline
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
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from actors.model_choice import ModelChoice
from actors.model_loading import make_engine
from benchmarks.command_line import at_least, told_in_a_sentence
from deploy.jobs.asked import asked_plainly
from deploy.jobs.carrying_out import carry_out
from deploy.jobs.inline_serving import inline as inline_serving
from deploy.jobs.meter import Figures
from deploy.jobs.order import add_arguments, order_of
from engine.event import TokenEvent
from engine.options import EngineOptions
from engine.request import Request, Sampling
from loaders.progress import OnProgress, ignore_progress
from loaders.sources import locate
from tests.batch_chaos import disturbed, prompts, texts, tiny_model, undisturbed
from tests.batches import StubAnswers, run_batch, write_lines
from tests.ray_cluster import ROOT, started_cluster


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


def bare(choice: ModelChoice, num_lines: int, batch_size: int) -> float:
    engine = make_engine(choice)
    for number, line in enumerate(lines(num_lines)):
        sampling = Sampling(max_tokens=line["max_tokens"], ignore_eos=True, temperature=0.8, seed=number)
        engine.add(Request(str(number), tuple(line["prompt"]), sampling))
    began, num_tokens = time.monotonic(), 0
    while engine.has_work:
        num_tokens += sum(isinstance(event, TokenEvent) for event in engine.step())
    return num_tokens / (time.monotonic() - began)


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
    parser.add_argument("what", choices=("speed", "crashes", "memory", "memory-of"))
    parser.add_argument("count", type=at_least(1), nargs="?", help="lines")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch-size", type=at_least(1), default=64)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    given = parser.parse_args()
    if given.what == "memory-of" and given.count is None:
        parser.error("memory-of wants to know of how many lines")
    match given.what:
        case "speed":
            speed(given.model, given.count or 256, given.batch_size, given.rounds)
        case "crashes":
            crashes(given.count or 2_000)
        case "memory":
            memory()
        case "memory-of":
            memory_of(given.count)


if __name__ == "__main__":
    main()
