"""Deaths: how many processes of the tree ended, and why. Counted from one look at the tree to the next."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from deploy.http.backend import Process

WORD = re.compile(r"[a-z_]+", re.IGNORECASE)


class Deaths:
    """Owned by who looks. Of several deaths between two looks all have the reason of the last one."""

    def __init__(self) -> None:
        self.by_reason: Counter[str] = Counter()
        self._seen: Mapping[str, int] = {}

    def look(self, tree: Process) -> None:
        now = dict(restarts_of(tree))
        for (name, reason), count in now.items():
            before = self._seen.get(name, 0)
            self.by_reason[reason] += count - before if count >= before else count
        self._seen = {name: count for (name, _), count in now.items()}


def restarts_of(process: Process, above: str = "") -> Iterator[tuple[tuple[str, str], int]]:
    """Each process by its place and the kind of its last end, with its restarts."""
    place = f"{above}/{process.name}"
    if process.restarts:
        yield (place, kind_of(process.last_reason)), process.restarts
    for child in process.children:
        yield from restarts_of(child, place)


def kind_of(reason: str | None) -> str:
    """A reason's first word: there are few of these, as a metric's label wants it."""
    word = WORD.search(reason or "")
    return word[0].lower() if word else "unknown"
