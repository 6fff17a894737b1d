"""Progress: how far something slow has come. Knows nothing of what is slow, nor of who looks."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One report: `done` of `total` bytes; a total that nobody knows is None."""

    stage: str  # a few words for a person: "loading weights"
    done: int
    total: int | None = None


OnProgress = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """What is called where nobody looks."""
