"""History: the last minutes as numbers, one sample a second. What the live page draws."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

from deploy.http.backend import Backend, Stats
from deploy.http.meters import Meters
from engine.refusal import Refusal

PERIOD_SECONDS = 1.0
NUM_SAMPLES = 300


@dataclass(frozen=True, slots=True)
class Sample:
    """One second. `number` counts them, so that a reader asks for those it has not got."""

    number: int
    at: float  # seconds since 1970
    tokens_per_second: float
    num_running: int
    num_waiting: int
    used_blocks: int
    first_token_seconds: float | None  # median of the latest streams
    restarts: int


class History:
    """Owned by the app; sampled by one task."""

    def __init__(self, backend: Backend, meters: Meters, now: Callable[[], float]) -> None:
        self._backend = backend
        self._meters = meters
        self._now = now
        self._samples: deque[Sample] = deque(maxlen=NUM_SAMPLES)
        self._num_tokens: int | None = None  # None: not counted yet
        self._count = 0
        self._last = now()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_SECONDS)
            try:
                self.take(await self._backend.stats())
            except Refusal:
                continue  # a second without a sample

    def take(self, stats: Stats) -> None:
        engine, now = stats.engine, self._now()
        rate = self._rate(stats.counts.get("tokens"), now)
        self._count += 1
        self._samples.append(
            Sample(
                self._count,
                now,
                round(rate, 2),
                stats.num_running,
                stats.num_waiting,
                engine.used_blocks if engine is not None else 0,
                self._meters.median_first_token(),
                sum(stats.restarts.values()),
            )
        )

    def after(self, number: int) -> list[dict[str, object]]:
        """The samples behind this one."""
        return [asdict(sample) for sample in self._samples if sample.number > number]

    def _rate(self, num_tokens: int | None, now: float) -> float:
        """Tokens a second since the sample before. The first count is a base: it is the whole journal's."""
        before, seconds = self._num_tokens, max(now - self._last, 0.001)
        self._num_tokens, self._last = num_tokens, now
        return 0.0 if before is None or num_tokens is None else max(0, num_tokens - before) / seconds
