"""WaitingLine: which requests are to be sent, and in which order. Suspects first, then by priority and arrival."""

import heapq
from collections.abc import Mapping

from actors.entry import Entry


class WaitingLine:
    """Owned by one ledger."""

    def __init__(self) -> None:
        self._heap: list[tuple[bool, int, int, str]] = []  # who was sent or ended meanwhile is skipped
        self._arrivals: dict[str, int] = {}
        self._num_arrivals = 0

    def arrive(self, entry: Entry) -> None:
        """For the first time; whoever comes back into line keeps the place that this gives."""
        self._num_arrivals += 1
        self._arrivals[entry.id] = self._num_arrivals
        self.put(entry)

    def put(self, entry: Entry) -> None:
        place = (not entry.is_suspect, entry.request.priority, self._arrivals[entry.id], entry.id)
        heapq.heappush(self._heap, place)

    def first(self, entries: Mapping[str, Entry]) -> Entry | None:
        """Whose turn it is; `pop` takes it out."""
        while self._heap:
            entry = entries.get(self._heap[0][3])
            if entry is not None and not entry.is_finished and entry.epoch is None:
                return entry
            self.pop()
        return None

    def pop(self) -> None:
        heapq.heappop(self._heap)

    def forget(self, request_id: str) -> None:
        del self._arrivals[request_id]
