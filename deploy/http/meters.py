"""Meters: what the door itself measures, and what it is told, in Prometheus' words. prometheus_client stands here."""

import asyncio
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from deploy.http.backend import ModelCard, Stats

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
RECENT = 256
# EngineStats' field -> a metric's name, and what it counts
GAUGES = {
    "num_blocks": "Blocks of the cache",
    "used_blocks": "Blocks that sequences hold",
    "remembered_blocks": "Free blocks that may be found again",
    "adapter_bytes": "Bytes of adapters in memory",
}
COUNTERS = {
    "steps": "Forward passes",
    "prompt_tokens": "Prompt tokens computed",
    "cached_tokens": "Prompt tokens found in the prefix cache",
    "generated_tokens": "Tokens drawn",
    "preemptions": "Sequences that had to give up their blocks for a while",
    "replayed_tokens": "Tokens drawn a second time to check a restart",
    "replay_mismatches": "Tokens that came out different the second time",
}


class Meters:
    """One server's measurements. Owned by the Edge."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._told = Told()
        self.registry.register(self._told)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"genserve_{name}_seconds", text, buckets=SECONDS, registry=self.registry)

        self.first_token = histogram("time_to_first_token", "From a request to its first token, streams")
        self.between_tokens = histogram("between_tokens", "From a token to the next one, streams")
        self.whole = histogram("request", "From a request to the end of its answer")
        self.requests = Counter("genserve_http_requests", "Requests", ["route", "status"], registry=self.registry)
        self.tokens = Counter("genserve_tokens", "Tokens answered", ["adapter"], registry=self.registry)
        self.streams = Gauge("genserve_streams", "Streams that are open", registry=self.registry)
        self.tasks = Gauge("genserve_door_tasks", "Tasks of the server's event loop", registry=self.registry)
        self.descriptors = Gauge("genserve_door_descriptors", "Open files and sockets", registry=self.registry)
        self._recent: deque[float] = deque(maxlen=RECENT)  # times to first token

    def took_first_token(self, seconds: float) -> None:
        self.first_token.observe(seconds)
        self._recent.append(seconds)

    def median_first_token(self) -> float | None:
        """Of the latest streams."""
        ordered = sorted(self._recent)
        return ordered[len(ordered) // 2] if ordered else None

    def look_at_itself(self) -> None:
        """What this process holds; asked on its event loop."""
        self.tasks.set(len(asyncio.all_tasks()))
        self.descriptors.set(len(os.listdir("/dev/fd")))

    def text(self, stats: Stats, card: ModelCard | None, is_ready: bool) -> bytes:
        """Everything, as it is scraped."""
        self._told.now = (stats, card, is_ready)
        return bytes(generate_latest(self.registry))


class Told:
    """What the backend said at the latest scrape."""

    now: tuple[Stats, ModelCard | None, bool] | None = None

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        if self.now is None:
            return
        stats, card, is_ready = self.now
        yield gauge("ready", "Whether requests can be served", float(is_ready))
        yield gauge("requests_waiting", "Requests accepted, and not yet in the batch", stats.num_waiting)
        yield gauge("requests_running", "Requests in the batch", stats.num_running)
        running = stats.engine.num_running if stats.engine is not None else 0
        places = card.max_sequences * stats.num_engines if card is not None else 0
        yield gauge("batch_occupancy", "Choices in the batch, of those it can hold", running / places if places else 0)
        restarts = CounterMetricFamily("genserve_restarts", "Lives of the engine that ended", labels=["reason"])
        for reason, count in stats.restarts.items():
            restarts.add_metric([reason], count)
        yield restarts
        yield from counted("", {name: getattr(stats.engine, name, 0) for name in COUNTERS}, COUNTERS)
        yield from counted("ledger_", stats.counts, {})
        for name, text in GAUGES.items():
            yield gauge(name, text, getattr(stats.engine, name, 0))


def gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"genserve_{name}", text, value=value if math.isfinite(value) else 0)


def counted(prefix: str, values: Mapping[str, Any], texts: Mapping[str, str]) -> Iterator[Metric]:
    for name, value in values.items():
        yield CounterMetricFamily(f"genserve_{prefix}{name}", texts.get(name, name.replace("_", " ")), value=value)
