"""Roster: whose requests are alive, and which of them wait for an adapter that is not in memory."""

from engine.sequence import Sequence


class Roster:
    """Owned by the Engine."""

    def __init__(self) -> None:
        self._living: dict[str, list[Sequence]] = {}
        self._parked: dict[str, list[Sequence]] = {}  # by adapter
        self.asked: set[str] = set()  # adapters that were asked for and have not come
        self._arrivals = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._living

    def __len__(self) -> int:
        return len(self._living)

    @property
    def num_parked(self) -> int:
        return sum(map(len, self._parked.values()))

    def next_arrival(self) -> int:
        self._arrivals += 1
        return self._arrivals

    def join(self, sequence: Sequence) -> None:
        self._living.setdefault(sequence.request.id, []).append(sequence)

    def leave(self, sequence: Sequence) -> bool:
        """Strike a sequence out; True if it was the last of its request."""
        request_id = sequence.request.id
        choices = self._living[request_id]
        choices.remove(sequence)
        if choices:
            return False
        del self._living[request_id]
        return True

    def choices(self, request_id: str) -> list[Sequence]:
        """The request's living sequences."""
        return list(self._living.get(request_id, ()))

    def park(self, adapter: str, sequence: Sequence) -> None:
        self._parked.setdefault(adapter, []).append(sequence)

    def unpark(self, adapter: str) -> list[Sequence]:
        """All that waited for this adapter."""
        self.asked.discard(adapter)
        return self._parked.pop(adapter, [])

    def forget_parked(self, sequence: Sequence) -> bool:
        """Strike a sequence out of those that wait for an adapter; False if it was not among them."""
        waiting = self._parked.get(sequence.request.adapter or "", [])
        if sequence not in waiting:
            return False
        waiting.remove(sequence)
        if not waiting:
            self.unpark(sequence.request.adapter or "")
        return True

    def waiting_for(self, adapter: str) -> list[Sequence]:
        """All that name this adapter and do not hold it yet, wherever they wait."""
        living = (sequence for choices in self._living.values() for sequence in choices)
        return [it for it in living if it.request.adapter == adapter and it.adapter_slot is None]

    def next_wanted(self) -> str | None:
        """The adapter that is waited for longest of those not asked for yet."""
        wanted = (name for name in self._parked if name not in self.asked)
        return min(wanted, key=lambda name: self._parked[name][0].arrival, default=None)

    def is_before(self, sequence: Sequence) -> bool:
        """Whether somebody who came before a sequence waits for an adapter, and it was not asked for yet."""
        name = self.next_wanted()
        return name is not None and self._parked[name][0].arrival < sequence.arrival

    def mark_asked(self, adapter: str) -> None:
        self.asked.add(adapter)

    def mark_answered(self, adapter: str) -> None:
        self.asked.discard(adapter)
