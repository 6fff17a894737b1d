"""FairQueue: who is admitted next. Deficit round robin between lanes; a tenant with an adapter and a priority is one.

Each lane earns tokens in turn and spends them on the cost of its requests, so a tenant with a thousand requests and
one with a single request get the same share while both wait. Priority is a weight and a place in the round: a lane
of priority p earns 2^-p times the usual, and stands before those of larger p. Others serve priorities strictly and
then need ageing against starvation; a share cannot starve.
"""

from collections import deque
from math import ceil

from engine.sequence import Sequence

QUANTUM_TOKENS = 512
LaneKey = tuple[int, str, str]  # priority, tenant, adapter


class Lane:
    """Requests of one kind, in order of arrival, and what they may spend."""

    __slots__ = ("deficit", "quantum", "sequences")

    def __init__(self, priority: int) -> None:
        self.sequences: deque[Sequence] = deque()
        self.quantum = QUANTUM_TOKENS * 2.0**-priority
        self.deficit = 0.0

    def rounds_to_afford(self) -> int:
        """How often it must earn before its first request is paid for."""
        missing = self.sequences[0].request.cost - self.deficit
        return max(0, ceil(missing / self.quantum))


class FairQueue:
    """All waiting sequences. Owned by the Scheduler."""

    def __init__(self) -> None:
        self._lanes: dict[LaneKey, Lane] = {}
        self._order: list[LaneKey] = []  # by priority, then by whose turn it is
        self._chosen: LaneKey | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def num_tokens(self) -> int:
        """The predicted work of all that wait."""
        return sum(sequence.request.cost for lane in self._lanes.values() for sequence in lane.sequences)

    def push(self, sequence: Sequence) -> None:
        key = lane_of(sequence)
        if key not in self._lanes:
            self._lanes[key] = Lane(key[0])
            self._order.append(key)
            self._order.sort(key=lambda lane: lane[0])  # stable: turns stay as they were
        self._lanes[key].sequences.append(sequence)
        self._size += 1

    def peek(self) -> Sequence | None:
        """Who is next. The choice stands until it is popped or removed, so nobody small slips past somebody large."""
        if not self._size:
            return None
        if self._chosen is None:
            self._chosen = self._choose()
        return self._lanes[self._chosen].sequences[0]

    def pop(self) -> Sequence:
        sequence = self.peek()
        assert sequence is not None and self._chosen is not None
        lane = self._lanes[self._chosen]
        lane.sequences.popleft()
        lane.deficit -= sequence.request.cost
        self._leave(self._chosen, was_next=True)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        key = lane_of(sequence)
        is_next = key == self._chosen and self._lanes[key].sequences[0] is sequence
        self._lanes[key].sequences.remove(sequence)
        self._leave(key, is_next)

    def _choose(self) -> LaneKey:
        """Let every lane earn until the first can pay; of several, the one that stands first."""
        rounds, position = min((self._lanes[key].rounds_to_afford(), at) for at, key in enumerate(self._order))
        for lane in self._lanes.values():
            lane.deficit += rounds * lane.quantum
        return self._order[position]

    def _leave(self, key: LaneKey, was_next: bool) -> None:
        self._size -= 1
        if was_next:
            self._chosen = None
        lane = self._lanes[key]
        if not lane.sequences:  # an empty lane keeps no savings
            del self._lanes[key]
            self._order.remove(key)


def lane_of(sequence: Sequence) -> LaneKey:
    request = sequence.request
    return request.priority, request.tenant, request.adapter or ""
