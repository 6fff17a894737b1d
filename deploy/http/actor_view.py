"""View: one look at the system of processes: what its request servers and model servers say of themselves."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from actors import model_stats, request_server, sys
from actors.exits import CallFailed
from actors.node import whereis
from actors.request_stats import RequestServerStats
from actors.running import Running
from actors.system_config import SystemConfig
from actors.tree import TreeNode
from deploy.http.backend import Process, Stats
from engine.stats import EngineStats, total

ANSWER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class View:
    """What was seen last."""

    why_not_ready: str | None
    engines: Mapping[str, EngineStats]  # of each model server the latest that was seen, also while there is none
    counts: Mapping[str, Mapping[str, int]]  # of each request server, likewise
    adapters: tuple[str, ...]
    stats: Stats
    running: tuple[Running, ...] = ()  # while somebody watches
    fingerprint: str = ""  # of the model, also while there is none


NO_VIEW = View("the system is starting", {}, {}, (), Stats(None))


def view_of(config: SystemConfig, before: View, *, is_watched: bool) -> View:
    """Look at every server, and wait for none of them for long."""
    partitions, failures, counts = [], [], dict(before.counts)
    running: list[Running] = []
    for name in config.partition_names:
        try:
            found = request_server.stats(name, ANSWER_SECONDS)
            partitions.append(found)
            if found.is_open:
                counts[name] = found.counts
            running += request_server.running(name, ANSWER_SECONDS) if is_watched else ()
        except CallFailed:
            failures.append(f"{name} does not answer")
    engines, fingerprint, is_suspended = dict(before.engines), before.fingerprint, False
    for name in config.model_names:
        pid = whereis(name)
        if pid is None:
            continue
        try:
            is_suspended |= sys.statistics(pid, ANSWER_SECONDS).is_suspended
            if not is_suspended:
                told = model_stats.stats(pid, ANSWER_SECONDS)
                engines[name], fingerprint = told.engine, told.fingerprint
        except CallFailed:
            continue
    num_living = sum(partition.num_living for partition in partitions)
    num_running = sum(partition.num_on_board for partition in partitions)
    adapters = next((partition.adapters for partition in partitions if partition.is_open), before.adapters)
    return View(
        "the engine is suspended" if is_suspended else why_not(partitions, failures),
        engines,
        counts,
        adapters,
        Stats(
            total(tuple(engines.values())) if engines else None,
            max(0, num_living - num_running),
            num_running,
            counts=added_up(counts) if len(counts) == len(config.partition_names) else {},
            num_engines=config.replicas,
        ),
        tuple(running),
        fingerprint,
    )


def added_up(counts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Of all partitions, or of none: one that joins the others later would seem to do its whole past's work at once."""
    sums: Counter[str] = Counter()
    for told in counts.values():
        sums.update(told)
    return dict(sums)


def why_not(partitions: list[RequestServerStats], failures: list[str]) -> str | None:
    """Why nothing can be served now."""
    if failures:
        return failures[0]
    for found in partitions:
        if not found.is_open:
            return "a journal is being read"
        if found.journal_failure is not None:
            return f"a journal cannot be written: {found.journal_failure}"
        if found.is_draining:
            return "the system is shutting down"
        if not found.active_models:
            return "the model is loading"
    return None


def process_of(node: TreeNode | None) -> Process:
    """The supervision tree, as the page shows it."""
    if node is None:
        return Process("root", "down")
    children = tuple(map(process_of, node.children))
    return Process(node.id, node.state, node.restarts, node.last_words, children)
