"""Deaths: how many processes of the tree ended, and why. Counted from one look at the tree to the next."""

import re
from collections import Counter
from collections.abc import Iterator

from deploy.http.backend import Process

WORD = re.compile(r"[a-z_]+", re.IGNORECASE)


class Deaths:
    """Owned by who looks. Of several deaths between two looks all have the reason of the last one."""

    def __init__(self) -> None:
        self.by_reason: Counter[str] = Counter()
        self._seen: dict[str, int] = {}  # also of those that a look lacks: a busy supervisor does not show its children

    def look(self, tree: Process) -> None:
        for place, process in places_of(tree):
            before = self._seen.get(place, 0)
            if process.restarts < before and process.state != "running":
                continue  # without a pid it shows only what its present supervisor has counted
            num_new = process.restarts - (before if process.restarts >= before else 0)
            if num_new:
                self.by_reason[kind_of(process.last_reason)] += num_new
            self._seen[place] = process.restarts


def places_of(process: Process, above: str = "") -> Iterator[tuple[str, Process]]:
    """Each process with its place in the tree."""
    place = f"{above}/{process.name}"
    yield place, process
    for child in process.children:
        yield from places_of(child, place)


def kind_of(reason: str | None) -> str:
    """A reason's first word: there are few of these, as a metric's label wants it."""
    word = WORD.search(reason or "")
    return word[0].lower() if word else "unknown"
