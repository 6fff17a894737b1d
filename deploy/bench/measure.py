"""Measuring one load on one system: when every token came, and what that says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

import numpy as np

from deploy.bench.workload import Arrival
from engine.engine import Engine
from engine.event import TokenEvent
from engine.request import Request, Sampling

OnTokens = Callable[[int], None]


@dataclass(slots=True)
class Timings:
    """When the tokens of each request came, in seconds after its arrival."""

    arrivals: Sequence[Arrival]
    times: dict[int, list[float]] = field(default_factory=dict)
    batch_sizes: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, index: int, now: float) -> None:
        self.times.setdefault(index, []).append(now - self.arrivals[index].at_seconds)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.times.values()))

    def summary(self) -> dict[str, Any]:
        """The figures of a run; times in milliseconds."""
        first = [times[0] for times in self.times.values()]
        between = np.concatenate([np.diff(times) for times in self.times.values()] or [np.zeros(0)])
        prompt_tokens = sum(len(arrival.prompt) for arrival in self.arrivals)
        return {
            "seconds": self.seconds,
            "requests": len(self.times),
            "prompt_tokens": prompt_tokens,
            "output_tokens": self.num_tokens,
            "output_tokens_per_second": self.num_tokens / self.seconds,
            "tokens_per_second": (self.num_tokens + prompt_tokens) / self.seconds,
            "first_token_ms": percentiles(first),
            "between_tokens_ms": percentiles(between),
            "mean_batch": float(np.mean(self.batch_sizes)) if self.batch_sizes else 0.0,
        }


def percentiles(seconds: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, float]:
    if not len(seconds):
        return {}
    values = np.percentile(np.asarray(seconds) * 1000, [50, 95, 99])
    return dict(zip(("p50", "p95", "p99"), values.tolist(), strict=True))


def measure_engine(engine: Engine, arrivals: Sequence[Arrival], temperature: float, on_tokens: OnTokens) -> Timings:
    """The load on an engine of ours."""
    timings, waiting, start = Timings(arrivals), list(enumerate(arrivals)), perf_counter()
    while waiting or engine.has_work:
        now = perf_counter() - start
        while waiting and waiting[0][1].at_seconds <= now:
            index, arrival = waiting.pop(0)
            sampling = Sampling(
                max_tokens=arrival.num_output, temperature=temperature, seed=arrival.seed, ignore_eos=True
            )
            engine.add(Request(str(index), arrival.prompt, sampling, adapter=arrival.adapter))
        if not engine.has_work:
            sleep(max(0.0, waiting[0][1].at_seconds - now))
            continue
        tokens = [event for event in engine.step() if isinstance(event, TokenEvent)]
        now = perf_counter() - start
        for event in tokens:
            timings.add(int(event.request_id), now)
        timings.batch_sizes += [len(tokens)] if tokens else []
        on_tokens(len(tokens))
    timings.seconds = perf_counter() - start
    return timings


def measure_reference(
    model: Any, arrivals: Sequence[Arrival], temperature: float, num_sequences: int, on_tokens: OnTokens
) -> Timings:
    """The same load, all base model, on mlx-lm's BatchGenerator."""
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_sampler

    generator = BatchGenerator(model, sampler=make_sampler(temp=temperature), completion_batch_size=num_sequences)
    generator.insert([list(arrivals[0].prompt[:1])], [2])
    untimed = 2  # tokens, for kernels that MLX has to compile
    while untimed:
        untimed -= len(generator.next()[1])
    timings, waiting, numbers, start = Timings(arrivals), list(enumerate(arrivals)), dict[int, int](), perf_counter()
    left = sum(arrival.num_output for arrival in arrivals)
    while left:
        now = perf_counter() - start
        while waiting and waiting[0][1].at_seconds <= now:
            index, arrival = waiting.pop(0)
            (uid,) = generator.insert([list(arrival.prompt)], [arrival.num_output])
            numbers[uid] = index
        _, responses = generator.next()
        now = perf_counter() - start
        for response in responses:
            timings.add(numbers[response.uid], now)
        left -= len(responses)
        timings.batch_sizes += [len(responses)] if responses else []
        on_tokens(len(responses))
    timings.seconds = perf_counter() - start
    generator.close()
    return timings
