"""Archive: answers that have ended and that somebody may come back for, packed as the journal has them.

So they take a tenth of the memory, the journal's next beginning copies them, and a restart need not read them event by
event. Who is asked for becomes an Entry again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from actors.ledger_records import Kept, More


@dataclass(frozen=True, slots=True)
class Packed:
    """One request with all that it has."""

    kept: Kept
    more: tuple[More, ...] = ()

    @property
    def events(self) -> list[bytes]:
        return [self.kept.events, *(more.events for more in self.more)]

    def records(self, now: float) -> Iterator[Kept | More]:
        yield self.kept._replace(now=now)
        for more in self.more:
            yield more._replace(now=now)


class Archive:
    """Owned by one book."""

    def __init__(self) -> None:
        self._packed: dict[str, Packed] = {}

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, request_id: str) -> Packed:
        return self._packed[request_id]

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._packed

    @property
    def num_bytes(self) -> int:
        return sum(len(events) for packed in self._packed.values() for events in packed.events)

    def put(self, request_id: str, packed: Packed) -> None:
        self._packed[request_id] = packed

    def add(self, more: More) -> None:
        packed = self._packed[more.id]
        self._packed[more.id] = replace(packed, more=(*packed.more, more))

    def drop(self, request_id: str) -> None:
        self._packed.pop(request_id, None)

    def shift_clock(self, seconds: float) -> None:
        """Express all moments on a clock that stands so much later."""
        for request_id, packed in self._packed.items():
            self._packed[request_id] = replace(packed, kept=shifted(packed.kept, seconds))


def shifted(kept: Kept, seconds: float) -> Kept:
    assert kept.finished_at is not None
    now, request, body, deadline, lease_seconds = kept.accepted
    deadline = None if deadline is None else deadline + seconds
    accepted = (now + seconds, request, body, deadline, lease_seconds)
    return kept._replace(accepted=accepted, finished_at=kept.finished_at + seconds)
