"""EngineStats: what an engine is doing and has done, as one frozen record."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the start, but for the first group, which is now."""

    num_running: int
    num_waiting: int
    waiting_tokens: int  # predicted work of those that wait
    num_blocks: int
    used_blocks: int
    remembered_blocks: int
    block_size: int
    adapters: tuple[str, ...]  # known
    resident_adapters: tuple[str, ...]
    adapter_bytes: int

    steps: int = 0
    prompt_tokens: int = 0  # computed
    cached_tokens: int = 0  # found in the prefix cache instead
    generated_tokens: int = 0
    finished_requests: int = 0
    preemptions: int = 0
    replayed_tokens: int = 0
    replay_mismatches: int = 0


def total(parts: Sequence[EngineStats]) -> EngineStats:
    """Several engines with one kind of block as one: counts are added, adapters are those that any of them has."""
    first = parts[0]
    words: dict[str, Any] = {}
    for field in fields(EngineStats):
        values = [getattr(part, field.name) for part in parts]
        is_names = isinstance(values[0], tuple)
        words[field.name] = (
            tuple(dict.fromkeys(name for names in values for name in names)) if is_names else sum(values)
        )
    return EngineStats(**{**words, "block_size": first.block_size})
