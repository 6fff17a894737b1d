"""SIGKILLs under load: every answer is compared, token by token, with that of an engine which nobody disturbed.

    python -m benchmarks.chaos --kills 500 --requests 20000 --tokens 12 [--minutes 7 --record FILE]    # in pieces
    python -m benchmarks.chaos --kills 100 --parts request supervisor pair
    python -m benchmarks.chaos --kills 20 --model smollm2 --streams 1 [--spares 1]       # how long the pause is

32 streams of every kind are kept open: greedy, seeded, four choices, stop strings, logprobs, penalties, two adapters.
With --record the counts are added to a file, and the sums over all runs that are in it are printed as well.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors import chaos, model_stats, process, sys, system
from actors.envelope import Down
from actors.exits import CallFailed
from actors.node import whereis
from actors.progress import glance, progress_path
from actors.system_config import ROOT, SystemConfig
from benchmarks.command_line import at_least, told_in_a_sentence
from benchmarks.streams import Load, bound, choice_of, requests_of_every_kind, spread, undisturbed

NUM_DISTINCT = 200  # requests, asked again and again under new ids
PARTS = ("model", "request", "supervisor", "pair")


@dataclass(frozen=True, slots=True)
class Gap:
    """One kill: how long no client saw a token, and with one stream and a dead model server, what passed meanwhile."""

    part: str
    was_idle: bool  # a spare at rest, for whom nobody waits
    seconds: float
    stages: dict[str, float]


def strike(part: str, number: int) -> set[str]:
    """Kill one of them, or two at once; their names."""
    victims: list[Any] = random.sample(PARTS[:3], 2) if part == "pair" else [part]
    for victim in victims:
        wait_for(lambda victim=victim: bool(chaos.parts(victim)))
    return {chaos.kill(victim, number).name for victim in victims}


def storm(load: Load, config: SystemConfig, part: str, kills: int, calm_seconds: float, until: float) -> list[Gap]:
    """One kill after the other, each at a random moment after the one before was got over."""
    gaps: list[Gap] = []
    for number in range(kills):
        if time.monotonic() > until:
            break
        wait_for(lambda: is_whole(config))
        time.sleep(random.uniform(0.0, calm_seconds))
        if part == "model":
            watch_the_watchers(config)
        idle = resting(config)
        began = time.monotonic()
        killed = strike(part, number)
        wait_for(lambda: is_whole(config))
        whole = time.monotonic()
        wait_for(lambda whole=whole: bool(load.findings.arrivals) and load.findings.arrivals[-1] > whole)
        silence = load.findings.silence_after(began)
        assert silence is not None
        was_idle = killed <= idle
        stages = stages_of(config, began, silence[1]) if part == "model" and not was_idle else {}
        gaps.append(Gap(part, was_idle, silence[1] - began, stages))
    return gaps


def resting(config: SystemConfig) -> set[str]:
    """Model servers that have no request, of those that are ready."""
    if not config.spares:
        return set()
    return {name for name in config.model_names if not model_stats.stats(name, 10.0).num_requests}


def watch_the_watchers(config: SystemConfig) -> None:
    """Have those who are told of a model server's death remember when."""
    for name in (config.models_supervisor, *config.partition_names):
        sys.trace(name, 5000 if name == config.models_supervisor else 20_000)


def stages_of(config: SystemConfig, began: float, seen: float) -> dict[str, float]:
    """The parts of a pause. With a warm spare nothing is spawned or loaded in it."""
    try:
        noticed = min(moment for name in config.partition_names for moment in downs(name) if moment > began)
        if config.spares:
            return {"noticed": noticed - began, "re-prefilled": seen - noticed}
        noticed = min(moment for moment in downs(config.models_supervisor) if moment > began)
        (name,) = config.model_names
        found = model_stats.stats(name, 10.0)
    except (CallFailed, ValueError):
        return {}
    ready = found.born_at + found.load_seconds
    return {
        "noticed": noticed - began,
        "spawned": found.born_at - noticed,
        "loaded": found.load_seconds,
        "re-prefilled": seen - ready,
    }


def downs(name: str) -> list[float]:
    return [event.at for event in sys.traced(name, 10.0) if isinstance(event.content, Down)]


def is_whole(config: SystemConfig) -> bool:
    """Whether every process of the tree is there, and every model server has its model."""
    names = (ROOT, f"{ROOT}.models", f"{ROOT}.requests", *config.partition_names)
    return all(whereis(name) is not None for name in names) and all(map(has_model(config), config.model_names))


def has_model(config: SystemConfig) -> Callable[[str], bool]:
    def check(name: str) -> bool:
        pid = whereis(name)
        seen = None if pid is None else glance(progress_path(Path(config.directory), str(pid)))
        return seen is not None and seen.is_ready

    return check


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            tree = system.status()
            raise TimeoutError(f"the system did not come back: {None if tree is None else tree.to_dict()}")
        time.sleep(0.01)


def lives(config: SystemConfig) -> int:
    """Of model servers, all in all."""
    wait_for(lambda: is_whole(config))
    return sum(pid.epoch for name in config.model_names if (pid := whereis(name)) is not None)


def run(args: argparse.Namespace, directory: Path) -> tuple[Counter[str], list[Gap], list[str]]:
    choice = choice_of(args.model, directory)
    requests = requests_of_every_kind(NUM_DISTINCT, args.tokens)
    expected = undisturbed(choice, requests)
    places = {"partitions": args.partitions, "spares": args.spares}
    config = SystemConfig(choice, str(directory / "state"), max_restarts=10**6, **places)
    client = system.start_system(config)
    load = Load(client, expected, requests, args.streams)
    wait_for(lambda: load.findings.counts["tokens"] > 0)
    gaps: list[Gap] = []
    counts: Counter[str] = Counter()
    until = time.monotonic() + 60 * args.minutes
    for part in args.parts:
        before = lives(config)
        found = storm(load, config, part, args.kills, args.calm, until)
        counts[f"kills of {part}"] = len(found)
        counts[f"models loaded for kills of {part}"] = lives(config) - before
        gaps += found
    wait_for(lambda: load.findings.counts["requests"] >= args.requests or time.monotonic() > until, 86400.0)
    load.finish(120.0)
    for found in client.stats():
        counts.update({name: found.counts[name] for name in ("stale_events", "duplicate_events", "gaps", "poisoned")})
    client.close()
    system.stop()
    return counts + load.findings.counts, gaps, load.findings.wrong


def report(counts: Counter[str]) -> dict[str, Any]:
    told: dict[str, Any] = {
        name: number for name, number in counts.items() if name.startswith(("kills of", "models loaded"))
    }
    return told | {
        "requests lost or never ended": bound(counts["lost"], counts["requests"]),
        "requests with other tokens, text or end": bound(counts["different"], counts["requests"]),
        "tokens compared": counts["tokens"],
        "stale events dropped": counts["stale_events"],
        "duplicates dropped": counts["duplicate_events"],
        "gaps in what model servers told": counts["gaps"],
        "falsely poisoned": counts["poisoned"],
    }


def pauses(gaps: list[Gap]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    felt = [gap for gap in gaps if not gap.was_idle]
    for part in dict.fromkeys(gap.part for gap in gaps):
        told[f"{part}: kill to next token, s"] = spread([gap.seconds for gap in felt if gap.part == part])
    for stage in dict.fromkeys(stage for gap in gaps for stage in gap.stages):
        told[f"of it {stage}, s"] = spread([gap.stages[stage] for gap in gaps if stage in gap.stages])
    return told


def recorded(file: Path, counts: Counter[str]) -> tuple[int, Counter[str]]:
    """Add a run to those on record: how many there are, and their sums."""
    with file.open("a") as record:
        record.write(json.dumps(counts) + "\n")
    runs = [Counter(json.loads(line)) for line in file.read_text().splitlines()]
    return len(runs), sum(runs, Counter())


@told_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--kills", type=at_least(0), default=50, help="of each part")
    parser.add_argument("--requests", type=at_least(0), default=0, help="go on under load until so many are answered")
    parser.add_argument("--minutes", type=at_least(0.0), default=600.0, help="go on for so long at most")
    parser.add_argument("--streams", type=at_least(1), default=32)
    parser.add_argument("--tokens", type=at_least(1), default=60)
    parser.add_argument("--parts", nargs="+", default=["model"], choices=PARTS)
    parser.add_argument("--partitions", type=at_least(1), default=1)
    parser.add_argument("--spares", type=at_least(0), default=0)
    parser.add_argument("--calm", type=at_least(0.0), default=1.0, help="seconds between two kills, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="a file that this run's counts are added to")
    args = parser.parse_args()
    random.seed(args.seed)
    process.connect()
    with tempfile.TemporaryDirectory() as directory:
        counts, gaps, wrong = run(args, Path(directory))
    process.disconnect()
    print(json.dumps(report(counts) | pauses(gaps) | ({"wrong": wrong[:10]} if wrong else {}), indent=2))
    if args.record is not None:
        number, sums = recorded(args.record, counts)
        print(f"the {number} runs in {args.record.name} together:", json.dumps(report(sums), indent=2))


if __name__ == "__main__":
    main()
