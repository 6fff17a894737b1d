"""WaitingLine: which requests are to be sent, and in which order. Suspects first, then in fair turns.

A tenant with an adapter and a priority is a lane. The lane that has been sent the least work goes next, so one that
asks a thousand times keeps nobody else waiting; who comes after a time without requests begins where the others are.
Priority is a weight, as in the engine's queue: work counts 2^p times. Within a lane arrival counts.
"""

import heapq
from collections.abc import Mapping

from actors.entry import Entry

Lane = tuple[int, str, str]  # priority, tenant, adapter
Place = tuple[bool, int, str]  # not a suspect, arrival, id
MAX_REMEMBERED = 1024


class WaitingLine:
    """Owned by one ledger."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, list[Place]] = {}  # heaps; who was sent or ended meanwhile is skipped
        self._sent: dict[Lane, float] = {}  # tokens of work, weighed
        self._floor = 0.0  # what a newcomer begins with
        self._arrivals: dict[str, int] = {}
        self._num_arrivals = 0
        self._next: tuple[Lane, Entry] | None = None

    def arrive(self, entry: Entry) -> None:
        """For the first time; whoever comes back into line keeps the place that this gives."""
        self._num_arrivals += 1
        self._arrivals[entry.id] = self._num_arrivals
        self.put(entry)

    def put(self, entry: Entry) -> None:
        lane = lane_of(entry)
        if lane not in self._lanes:
            self._lanes[lane] = []
            self._sent[lane] = max(self._sent.get(lane, 0), self._floor)
        heapq.heappush(self._lanes[lane], (not entry.is_suspect, self._arrivals[entry.id], entry.id))

    def first(self, entries: Mapping[str, Entry]) -> Entry | None:
        """Whose turn it is; `pop` takes it out."""
        for lane in list(self._lanes):
            self._drop_those_who_left(lane, entries)
        if not self._lanes:
            return None
        lane = min(self._lanes, key=self._turn_of)
        self._next = lane, entries[self._lanes[lane][0][2]]
        return self._next[1]

    def pop(self) -> None:
        assert self._next is not None
        lane, entry = self._next
        heapq.heappop(self._lanes[lane])
        self._floor = max(self._floor, self._sent[lane])
        self._sent[lane] += entry.request.cost * 2.0**entry.request.priority

    def forget(self, request_id: str) -> None:
        del self._arrivals[request_id]

    def _turn_of(self, lane: Lane) -> tuple[bool, float, int, int]:
        is_not_suspect, arrival, _ = self._lanes[lane][0]
        return is_not_suspect, self._sent[lane], lane[0], arrival

    def _drop_those_who_left(self, lane: Lane, entries: Mapping[str, Entry]) -> None:
        heap = self._lanes[lane]
        while heap and not waits(entries.get(heap[0][2])):
            heapq.heappop(heap)
        if not heap:
            del self._lanes[lane]
            if len(self._sent) > MAX_REMEMBERED:
                kept = self._lanes.keys()
                self._sent = {lane: sent for lane, sent in self._sent.items() if lane in kept or sent > self._floor}


def lane_of(entry: Entry) -> Lane:
    return entry.request.priority, entry.request.tenant, entry.request.adapter or ""


def waits(entry: Entry | None) -> bool:
    return entry is not None and not entry.is_finished and entry.epoch is None
