"""Book: what a request server has taken on and how far it got, as its records made it. Pure, and decides nothing.

Replaying the journal makes the same book again, whatever was killed and when; a snapshot of it is a shorter journal.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from actors.archive import Archive, Packed
from actors.entry import Entry
from actors.ledger_options import LedgerOptions
from actors.ledger_records import (
    Accepted,
    Attempted,
    Counted,
    Crashed,
    Ended,
    Kept,
    More,
    Opened,
    Record,
    Released,
    Told,
)
from actors.load import Load
from actors.placement import Board
from actors.refusals import RequestPoisoned
from actors.waiting_line import WaitingLine
from engine.completion import Transcript
from engine.event import ChoiceEnded, Event, Started, TokenEvent
from engine.request import Request
from engine.vocabulary import Vocabulary
from engine.wire import unpack_events, unpack_request

MAX_CRASHES_ALONE = 2
COUNTED = (
    *("accepted", "finished", "tokens", "poisoned", "deadlines_missed", "clients_lost"),
    *("stale_events", "late_events", "duplicate_events", "gaps", "malformed_messages"),
)


class Book:
    """Changed by records alone."""

    def __init__(self, vocabulary: Vocabulary, options: LedgerOptions | None = None) -> None:
        self.options = options or LedgerOptions()
        self.entries: dict[str, Entry] = {}  # all that have not ended, and some that have
        self.boards: dict[str, Board] = {}
        self.load = Load(self.options.max_owed_tokens)
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self._vocabulary = vocabulary
        self._archive = Archive()  # the others that have ended
        self._finished: OrderedDict[str, None] = OrderedDict()  # longest ago first
        self._waiting = WaitingLine()
        self._clock: str | None = None
        self._last = 0.0

    @property
    def num_finished(self) -> int:
        return len(self._finished)

    @property
    def num_living(self) -> int:
        return len(self.entries) + len(self._archive) - len(self._finished)

    @property
    def num_archived_bytes(self) -> int:
        return self._archive.num_bytes

    def knows(self, request_id: str) -> bool:
        return request_id in self.entries or request_id in self._archive

    def look(self, request_id: str) -> Entry | None:
        """A request that is asked for."""
        if request_id in self._archive:
            self.entries[request_id] = self._restored(self._archive[request_id])
            self._archive.drop(request_id)
        return self.entries.get(request_id)

    # Recovery and compaction

    def replay(self, records: Iterable[Record]) -> None:
        for record in records:
            self._apply(record)
            self._last = record.now

    def snapshot(self, now: float) -> Iterator[Record]:
        """Records that make this book again. Who has ended goes to the archive for it."""
        for request_id in [name for name in self._finished if name in self.entries]:
            self._archive.put(request_id, self.entries.pop(request_id).packed(now))
        yield Opened(now, self._clock or "")
        for request_id in self._finished:
            yield from self._archive[request_id].records(now)
        for entry in self.entries.values():
            yield from entry.packed(now).records(now)
        yield Counted(now, dict(self.counts))

    def _apply(self, record: Record) -> None:
        match record:
            case Opened():
                self._opened(record)
            case Accepted():
                self._accepted(record, unpack_request(record.request))
            case Attempted():
                for request_id in record.ids:
                    if request_id in self.entries:
                        self._board_entry(self.entries[request_id], record.epoch, record.is_alone)
            case Told():
                self._told(record.epoch, unpack_events(record.events), record.now)
            case Crashed():
                self._crashed(record)
            case Released():
                self._released(record)
            case Ended():
                if record.id in self.entries:
                    self._ended(record)
            case Kept():
                self._kept(record)
            case More():
                self._more(record)
            case Counted():
                self.counts = Counter(dict.fromkeys(COUNTED, 0) | record.counts)

    # What each record does

    def _opened(self, record: Opened) -> None:
        """Another clock than before: what was left of a deadline then is left now."""
        if self._clock is not None and record.clock != self._clock:
            for entry in self.entries.values():
                entry.shift_clock(record.now - self._last)
            self._archive.shift_clock(record.now - self._last)
        self._clock = record.clock

    def _accepted(self, record: Accepted, request: Request) -> Entry:
        self._archive.drop(request.id)  # a replay meets an id again that had been forgotten
        self._finished.pop(request.id, None)
        self.entries.pop(request.id, None)
        entry = self.entries[request.id] = self._begun(record, request)
        self.load.owed_tokens += entry.owed
        self.counts["accepted"] += 1
        self._waiting.arrive(entry)
        return entry

    def _told(self, epoch: str, events: Sequence[Event], now: float) -> set[str]:
        touched, work = set[str](), 0
        for event in events:
            entry = self.entries.get(getattr(event, "request_id", ""))
            if entry is None or entry.is_finished:
                self.counts["late_events"] += 1
            elif entry.epoch != epoch:
                self.counts["stale_events"] += 1
            elif entry.misses(event):
                self.counts["gaps"] += 1
                self._leave_board(entry)
                self._waiting.put(entry)
                touched.add(entry.id)
            elif entry.take(event):
                touched.add(entry.id)
                work += self._progress(entry, event)
                if isinstance(event, TokenEvent):
                    entry.absolve()
                    if event.position == 0:
                        self.load.saw_first_token(now - entry.accepted.now)
                if ends_a_choice(event) and entry.transcript.is_finished:
                    self._finish(entry, now)
            elif isinstance(event, TokenEvent):
                self.counts["duplicate_events"] += 1
        if work:
            self.load.pace.record(now, work)
        return touched

    def _progress(self, entry: Entry, event: Event) -> int:
        """It got further: the tokens of work that this was."""
        found = 0
        if isinstance(event, Started):
            done, found = len(entry.request.prompt), event.cached_tokens
        elif isinstance(event, TokenEvent):
            done = 1
            self.counts["tokens"] += 1
        else:
            done = 0
        done = min(done, entry.owed)
        entry.owed -= done
        self.load.owed_tokens -= done
        return max(0, done - found)  # what was in the cache was no work

    def _crashed(self, record: Crashed) -> None:
        board = self.boards.pop(record.epoch, None)
        if board is None:
            return
        for request_id in board.ids:
            entry = self.entries[request_id]
            entry.epoch, entry.is_alone = None, False
            if record.alone is None:
                entry.crashes += 1
            elif record.alone == request_id:
                entry.crashes += 1
                entry.crashes_alone += 1
            if entry.crashes_alone >= MAX_CRASHES_ALONE:
                self.counts["poisoned"] += 1
                message = f"the request crashed the engine, {entry.crashes_alone} times when it was run alone"
                self._ended(Ended(record.now, request_id, RequestPoisoned.code, message))
            else:
                self._waiting.put(entry)

    def _released(self, record: Released) -> None:
        board = self._board(record.epoch)
        for request_id in list(board.ids):
            entry = self.entries[request_id]
            self._leave_board(entry)
            self._waiting.put(entry)

    def _ended(self, record: Ended) -> None:
        entry = self.entries[record.id]
        if not entry.is_finished:
            entry.close(record)
            self._finish(entry, record.now)

    def _kept(self, record: Kept) -> None:
        accepted = Accepted(*record.accepted)
        request = unpack_request(accepted.request)
        if record.finished_at is not None:
            self._archive.put(request.id, Packed(record))
            self._finished[request.id] = None
            self.counts.update(("accepted", "finished"))
            return
        entry = self._accepted(accepted, request)
        self._remember(entry, record.events)
        entry.crashes, entry.crashes_alone = record.crashes, record.crashes_alone
        if record.epoch is not None:
            self._board_entry(entry, record.epoch, record.is_alone)

    def _more(self, record: More) -> None:
        if record.id in self._archive:
            self._archive.add(record)
        else:
            self._remember(self.entries[record.id], record.events)

    # The pieces of it

    def _begun(self, record: Accepted, request: Request) -> Entry:
        transcript = Transcript(request, self._vocabulary)
        return Entry(
            request, record, transcript, [[] for _ in range(request.sampling.n)], seen_at=record.now, owed=request.cost
        )

    def _remember(self, entry: Entry, events: bytes) -> None:
        """How far it had got."""
        for event in unpack_events(events):
            entry.take(event)
            self._progress(entry, event)

    def _restored(self, packed: Packed) -> Entry:
        """An answer that has ended, as it was."""
        record = packed.kept
        accepted = Accepted(*record.accepted)
        entry = self._begun(accepted, unpack_request(accepted.request))
        for events in packed.events:
            for event in unpack_events(events):
                entry.take(event)
        entry.crashes, entry.crashes_alone = record.crashes, record.crashes_alone
        entry.ended = None if record.ended is None else Ended(*record.ended)
        entry.finished_at, entry.owed = record.finished_at, 0
        return entry

    def _board(self, epoch: str) -> Board:
        return self.boards.setdefault(epoch, Board(epoch, self.options.max_choices_on_board))

    def _board_entry(self, entry: Entry, epoch: str, is_alone: bool) -> None:
        self._leave_board(entry)
        entry.epoch, entry.is_alone = epoch, is_alone
        self._board(epoch).put(entry.request)

    def _leave_board(self, entry: Entry) -> None:
        if entry.epoch is not None and entry.epoch in self.boards:
            self.boards[entry.epoch].take(entry.id)
        entry.epoch, entry.is_alone = None, False

    def _finish(self, entry: Entry, now: float) -> None:
        self._leave_board(entry)
        self._waiting.forget(entry.id)
        entry.finished_at = now
        self.load.owed_tokens -= entry.owed
        entry.owed = 0
        self._finished[entry.id] = None
        self.counts["finished"] += 1


def ends_a_choice(event: Event) -> bool:
    return isinstance(event, (TokenEvent, ChoiceEnded)) and event.finish_reason is not None
