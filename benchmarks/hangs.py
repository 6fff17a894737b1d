"""A model server that lives and does nothing: how soon it is found, and whether its late words are believed.

    python -m benchmarks.hangs --times 20

It is stopped (SIGSTOP) in the middle of its work, or a step deadlocks. When another has taken its place, the dead one
speaks up: tokens in its name, at the very positions that its requests have come to, are sent to the request server.
All streams are compared with those of an engine which nobody disturbed.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors import chaos, system, watchdog
from actors.client import Client
from actors.messages import Events
from actors.node import cast, whereis
from actors.pid import Pid
from actors.refusals import RequestPoisoned
from actors.system_config import ROOT, SystemConfig
from benchmarks.chaos import is_whole, wait_for
from benchmarks.repeated import run_from_command_line
from benchmarks.streams import Load, bound, choice_of, requests_of_every_kind, spread, undisturbed
from engine.event import Event, TokenEvent
from engine.wire import pack_events
from tests.serving import HANG

STREAMS = 32


def stopped(config: SystemConfig, load: Load) -> float:
    """Stop the model server; how long until it was dead. Its zombie's words follow."""
    (name,) = config.model_names
    zombie = whereis(name)
    assert zombie is not None
    number = chaos.process_id_of(zombie)
    began = time.monotonic()
    os.kill(number, signal.SIGSTOP)
    wait_for(lambda: not Path(f"/proc/{number}").exists() or state_of(number) == "Z", 60.0)
    found = time.monotonic() - began
    wait_for(lambda: is_whole(config))
    speak_up(zombie, config, load)
    return found


def state_of(number: int) -> str:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def speak_up(zombie: Pid, config: SystemConfig, load: Load) -> None:
    """In the name of the dead, wrong tokens at each position that may be the next one."""
    events: list[Event] = []
    for name in list(load.findings.open):
        events += [TokenEvent(name, 0, position, 7, None, None) for position in range(64)]
    for partition in config.partition_names:
        cast(partition, Events(zombie, pack_events(events)))


def deadlocked(client: Client, number: int) -> list[float]:
    """Ask for a step that never returns, until it is named poison; how long each of the hangs lasted."""
    before = len(watchdog.stats(f"{ROOT}.watchdog").kills)
    try:
        client.generate((*HANG, 5, number % 250), id=f"hang-{number}-{random.random()}", max_tokens=4)
    except RequestPoisoned:
        kills = watchdog.stats(f"{ROOT}.watchdog").kills
        return [seconds for _, seconds in kills[before:]]
    raise AssertionError("a request that hangs the engine was answered")


def times(count: int, config: SystemConfig, load: Load, try_once: Callable[[int], list[float]]) -> list[float]:
    found: list[float] = []
    for number in range(count):
        wait_for(lambda: is_whole(config))
        seen = load.findings.counts["tokens"]
        wait_for(lambda seen=seen: load.findings.counts["tokens"] > seen + 200)
        found += try_once(number)
    return found


def run(count: int, directory: Path) -> dict[str, Any]:
    choice = choice_of("tiny", directory)
    requests = requests_of_every_kind(100, 40)
    expected = undisturbed(choice, requests)
    config = SystemConfig(choice, str(directory / "state"), max_restarts=10**6)
    client = system.start_system(config)
    load = Load(client, expected, requests, STREAMS)
    halts = times(count, config, load, lambda _: [stopped(config, load)])
    locks = times(max(1, count // 4), config, load, lambda number: deadlocked(client, number))
    load.finish(120.0)
    (stats,) = client.stats()
    counts = load.findings.counts
    client.close()
    system.stop()
    return {
        f"stopped {len(halts)} times: from SIGSTOP to its death, s": spread(halts),
        f"deadlocked {len(locks)} times: how long the step had lasted, s": spread(locks),
        "stale tokens dropped": stats.counts["stale_events"],
        "requests lost or never ended": bound(counts["lost"], counts["requests"]),
        "requests with other tokens, text or end": bound(counts["different"], counts["requests"]),
        "wrong": load.findings.wrong[:10],
    }


if __name__ == "__main__":
    run_from_command_line(__doc__, 20, run)
