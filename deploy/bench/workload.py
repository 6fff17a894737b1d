"""Workload: who asks for how much, and when. Drawn from a seed, so that two systems can be given the same."""

from dataclasses import dataclass

import numpy as np

from engine.refusal import BadRequest, shown

MOST = 1_000_000  # tokens of a prompt or an answer: more than any context


@dataclass(frozen=True, slots=True)
class Range:
    """Whole numbers from `low` to `high`."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str, name: str) -> "Range":
        """`64`, or `16:256`."""
        low, _, high = text.partition(":")
        try:
            parsed = cls(int(low), int(high or low))
        except ValueError:
            raise BadRequest(f"{name} is a number or a range like 16:256; got {shown(text)}", name) from None
        if not 1 <= parsed.low <= parsed.high <= MOST:
            raise BadRequest(f"{name} must rise from at least 1 to at most {MOST}; got {shown(text)}", name)
        return parsed


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a load."""

    at_seconds: float  # from the start
    prompt: tuple[int, ...]
    num_output: int
    adapter: str | None
    seed: int


def make_workload(
    num_requests: int,
    vocab_size: int,
    prompt_tokens: Range,
    output_tokens: Range,
    adapters: tuple[str, ...] = (),
    rate: float | None = None,
    seed: int = 0,
) -> list[Arrival]:
    """So many requests, all at once or in a Poisson stream of `rate` a second; adapters take turns."""
    random = np.random.default_rng(seed)
    gaps = np.zeros(num_requests) if rate is None else random.exponential(1 / rate, num_requests)
    lengths = random.integers(prompt_tokens.low, prompt_tokens.high, num_requests, endpoint=True)
    outputs = random.integers(output_tokens.low, output_tokens.high, num_requests, endpoint=True)
    return [
        Arrival(
            float(at),
            tuple(random.integers(0, vocab_size, length).tolist()),
            int(output),
            adapters[index % len(adapters)] if adapters else None,
            (seed + index) % 2**64,
        )
        for index, (at, length, output) in enumerate(zip(np.cumsum(gaps), lengths, outputs, strict=True))
    ]
