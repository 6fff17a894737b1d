"""Untold: what steps brought, and their consumers were not told yet.

Every message costs its reader more than what stands in it, and while the reader computes the model does not. Where
nobody looks at single tokens, what several steps brought goes out together. A crash costs the time to compute it again,
and two within that time do not show that a request got further in between: it may be run alone for a step.
"""

from actors.pid import Pid
from engine.engine import Engine
from engine.event import Event

Parts = dict[Pid, list[Event]]


class Untold:
    """Owned by one model server. What there is may stay for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._parts: Parts = {}
        self._told_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, parts: Parts) -> None:
        for consumer, events in parts.items():
            self._parts.setdefault(consumer, []).extend(events)

    def may_stay(self, engine: Engine, now: float) -> bool:
        """For more steps, as long as the engine will not run short of requests meanwhile."""
        is_well_supplied = 2 * engine.scheduler.num_waiting >= engine.scheduler.max_sequences
        return is_well_supplied and now - self._told_at < self._seconds

    def take(self, now: float) -> Parts:
        parts, self._parts, self._told_at = self._parts, {}, now
        return parts
