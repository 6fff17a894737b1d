"""Archive: answers that have ended and that somebody may come back for, as one record each.

So they take a tenth of the memory, the journal's next beginning copies them, and a restart need not read them event by
event. Who is asked for becomes an Entry again.
"""

from actors.ledger_records import Kept


class Archive:
    """Owned by one book."""

    def __init__(self) -> None:
        self._records: dict[str, Kept] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, request_id: str) -> Kept:
        return self._records[request_id]

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._records

    def put(self, request_id: str, record: Kept) -> None:
        self._records[request_id] = record

    def take(self, request_id: str) -> Kept | None:
        return self._records.pop(request_id, None)

    def finished_at(self, request_id: str) -> float | None:
        record = self._records.get(request_id)
        return None if record is None else record.finished_at

    def shift_clock(self, seconds: float) -> None:
        """Express all moments on a clock that stands so much later."""
        self._records = {name: shifted(record, seconds) for name, record in self._records.items()}


def shifted(record: Kept, seconds: float) -> Kept:
    assert record.finished_at is not None
    now, request, body, deadline, lease_seconds = record.accepted
    deadline = None if deadline is None else deadline + seconds
    accepted = (now + seconds, request, body, deadline, lease_seconds)
    return record._replace(accepted=accepted, finished_at=record.finished_at + seconds)
