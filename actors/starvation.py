"""Starvation: how long a process wanted a core and others had it. A starved process is not a stuck one.

A machine that is asked for too much makes every step last longer than it should, and a watchdog that ends the slow ones
adds their restarts to the load. The kernel counts what each thread has waited; where it does not, nobody is starved.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

Waits = dict[str, float]  # by thread, seconds since it began


def waits_of(process_id: int) -> Waits:
    """What its threads have waited for a core, as told when they got one. Who is stopped, or sleeps, does not wait."""
    found = {}
    for task in Path(f"/proc/{process_id}/task").glob("*"):
        with suppress(OSError):
            found[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return found


@dataclass(frozen=True, slots=True)
class Silence:
    """A time in which one process showed nothing new, from its last sign of life on, as of some look."""

    since: float
    waits: Waits | None = None  # at the second look: most silences are over by then, and cost nothing
    starved_seconds: float = 0.0  # how much of it, at least, went by because the process got no core

    def still(self, waits: Waits) -> "Silence":
        """The same silence, a look later."""
        first = self.waits or waits
        starved = max((waited - first.get(thread, waited) for thread, waited in waits.items()), default=0.0)
        return Silence(self.since, first, starved)
