"""Ledger: what a request server knows and decides. Pure: no process, no clock, no file; facts and moments come in.

Every decision is applied here and handed out as records. The server writes them to its journal before anybody outside
sees the effect; replaying them makes the same ledger again, whatever was killed and when. What a request has is its
tokens, so a model server's death costs it nothing but time: it is sent again with the tokens that it has.

A request is suspected when two model servers died with it on board and it got no further in between, as one that
makes progress is not what kills them. A suspect is run alone. If a model server dies twice while it runs alone, the
request is answered `request_poisoned`. (Counting crashes without looking at progress was rejected: where machines
die for other reasons, every long request would sooner or later be suspected.)
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from actors.entry import Entry
from actors.ledger_records import Accepted, Attempted, Crashed, Ended, Kept, Opened, Record, Released, Told
from actors.load import Load
from actors.placement import Board, place
from actors.refusals import Conflict, DeadlinePassed, RequestPoisoned, UnknownRequest
from actors.waiting_line import WaitingLine
from engine.completion import Transcript
from engine.event import ChoiceEnded, Event, Started, TokenEvent
from engine.request import Request
from engine.vocabulary import Vocabulary
from engine.wire import pack_request, unpack_events, unpack_request

MAX_CRASHES_ALONE = 2
COUNTED = (
    *("accepted", "finished", "tokens", "poisoned", "deadlines_missed", "clients_lost"),
    *("stale_events", "late_events", "duplicate_events", "gaps", "malformed_messages"),
)


@dataclass(frozen=True, slots=True)
class LedgerOptions:
    """How much a request server may hold."""

    max_owed_tokens: int = 1 << 20  # predicted work, accepted and not done
    max_choices_on_board: int = 256  # of one model server
    num_active: int = 1  # model servers at work at a time; any others are kept warm
    keep_seconds: float = 300.0  # a finished answer, for whom comes back
    max_kept: int = 4096


class Ledger:
    """Owned by one request server."""

    def __init__(self, vocabulary: Vocabulary, options: LedgerOptions = LedgerOptions()) -> None:
        self.options = options
        self.entries: dict[str, Entry] = {}
        self.boards: dict[str, Board] = {}
        self.load = Load(options.max_owed_tokens)
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self._vocabulary = vocabulary
        self._finished: OrderedDict[str, None] = OrderedDict()  # longest ago first
        self._waiting = WaitingLine()
        self._clock: str | None = None
        self._last = 0.0

    # What clients ask

    def accept(
        self,
        request: Request,
        body: bytes,
        now: float,
        deadline: float | None = None,
        lease_seconds: float | None = None,
    ) -> Accepted | None:
        """Take a request, or refuse it; None if it is here already, asked in the same words."""
        known = self.entries.get(request.id)
        if known is not None:
            if known.accepted.body != body or known.request.tenant != request.tenant:
                raise Conflict(f"the id {request.id[:60]!r} belongs to another request", "id")
            known.seen_at = now
            return None
        if deadline is not None and deadline <= now:
            raise DeadlinePassed("the deadline had passed when the request came", "deadline")
        self.load.check(request.cost, len(self.entries) - len(self._finished), now, deadline)
        record = Accepted(now, pack_request(request), body, deadline, lease_seconds)
        self._accepted(record, request)
        return record

    def withdraw(self, request_id: str) -> None:
        """Forget a request that could not be written down, before anything was done for it."""
        entry = self.entries[request_id]
        self._leave_board(entry)
        del self.entries[request_id]
        self.load.owed_tokens -= entry.owed
        self._waiting.forget(request_id)
        self.counts["accepted"] -= 1

    def find(self, request_id: str, tenant: str = "") -> Entry:
        entry = self.entries.get(request_id)
        if entry is None or entry.request.tenant != tenant:
            raise UnknownRequest(f"no request has the id {request_id[:60]!r}", "id")
        return entry

    def cancel(self, request_id: str, now: float, tenant: str = "") -> Ended | None:
        """End a request because its client wants so; None if it has ended already."""
        entry = self.find(request_id, tenant)
        return None if entry.is_finished else self.end(entry, None, None, now)

    def end(self, entry: Entry, code: str | None, message: str | None, now: float) -> Ended:
        record = Ended(now, entry.id, code, message)
        self._ended(record)
        return record

    # What time brings

    def expire(self, now: float) -> Iterator[tuple[Ended, str | None]]:
        """End what is late, and what nobody came back for; with each the model server that had it."""
        for entry in [entry for entry in self.entries.values() if not entry.is_finished]:
            epoch, accepted = entry.epoch, entry.accepted
            if accepted.deadline is not None and accepted.deadline <= now:
                self.counts["deadlines_missed"] += 1
                yield self.end(entry, DeadlinePassed.code, "the deadline passed", now), epoch
            elif accepted.lease_seconds is not None and entry.seen_at + accepted.lease_seconds <= now:
                self.counts["clients_lost"] += 1
                yield self.end(entry, None, "its client went away", now), epoch

    def forget(self, now: float) -> None:
        """Drop finished answers that were kept long enough."""
        while self._finished:
            entry = self.entries[next(iter(self._finished))]
            assert entry.finished_at is not None
            if entry.finished_at + self.options.keep_seconds > now and len(self._finished) <= self.options.max_kept:
                return
            del self._finished[entry.id], self.entries[entry.id]
            self._waiting.forget(entry.id)

    # What model servers bring

    def model_up(self, epoch: str) -> None:
        self._board(epoch).is_up = True

    def model_busy(self, epoch: str) -> None:
        """It lives, but takes nothing new."""
        self._board(epoch).is_up = False

    def model_down(self, epoch: str, alone: str | None, now: float) -> Crashed | None:
        """It died. None if it had nothing of ours."""
        record = Crashed(now, epoch, alone)
        had_any = bool(self._board(epoch).ids)
        self._crashed(record)
        return record if had_any else None

    def release(self, epoch: str, now: float) -> Released | None:
        """Send again what this model server had, without blame: it left in order, or we have only just come back."""
        if not self._board(epoch).ids:
            return None
        record = Released(now, epoch)
        self._released(record)
        return record

    def tell(self, epoch: str, events: Sequence[Event], packed: bytes, now: float) -> tuple[Told | None, set[str]]:
        """Take a step's events: the record if any was news, and whose they were."""
        touched = self._told(epoch, events, now)
        return (Told(now, epoch, packed) if touched else None), touched

    def refused(self, epoch: str, request_id: str, code: str, message: str, now: float) -> Ended | None:
        """A model server would not take a request."""
        entry = self.entries.get(request_id)
        if entry is None or entry.is_finished or entry.epoch != epoch:
            return None
        return self.end(entry, code, message, now)

    def dispatch(self, now: float) -> list[Attempted]:
        """Who goes where now: suspects first, each to be run alone, then by priority and arrival."""
        groups: dict[tuple[str, bool], list[str]] = {}
        while (entry := self._waiting.first(self.entries)) is not None:
            board = place(entry.request, self.active_boards())
            if board is None:
                break
            self._waiting.pop()
            groups.setdefault((board.epoch, entry.is_suspect), []).append(entry.id)
            self._board_entry(entry, board.epoch, entry.is_suspect)
        return [Attempted(now, epoch, tuple(ids), is_alone) for (epoch, is_alone), ids in groups.items()]

    # Recovery and compaction

    def open(self, now: float, clock: str) -> Opened:
        """Begin to write, after a replay or not."""
        record = Opened(now, clock)
        self._opened(record)
        for entry in self.entries.values():
            entry.seen_at = now
        return record

    def replay(self, records: Iterable[Record]) -> None:
        for record in records:
            self._replay_one(record)
            self._last = record.now

    def snapshot(self, now: float) -> Iterator[Record]:
        """Records that make this ledger again."""
        yield Opened(now, self._clock or "")
        for entry in self.entries.values():
            yield entry.kept(now)

    def _replay_one(self, record: Record) -> None:
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

    # What each record does

    def _opened(self, record: Opened) -> None:
        """Another clock than before: what was left of a deadline then is left now."""
        if self._clock is not None and record.clock != self._clock:
            for entry in self.entries.values():
                entry.shift_clock(record.now - self._last)
        self._clock = record.clock

    def _accepted(self, record: Accepted, request: Request) -> None:
        entry = Entry(
            request,
            record,
            Transcript(request, self._vocabulary),
            [[] for _ in range(request.sampling.n)],
            seen_at=record.now,
            owed=request.cost,
        )
        self.entries[request.id] = entry
        self._finished.pop(request.id, None)  # a replay meets an id again that had been forgotten
        self.load.owed_tokens += entry.owed
        self.counts["accepted"] += 1
        self._waiting.arrive(entry)

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
                if isinstance(event, TokenEvent) and event.position == 0:
                    self.load.saw_first_token(now - entry.accepted.now)
                if isinstance(event, TokenEvent | ChoiceEnded) and entry.transcript.is_finished:
                    self._finish(entry, now)
            elif isinstance(event, TokenEvent):
                self.counts["duplicate_events"] += 1
        if work:
            self.load.pace.record(now, work)
        return touched

    def _progress(self, entry: Entry, event: Event) -> int:
        """It got further: what killed a model server before was not it. The tokens of work that this was."""
        found = 0
        if isinstance(event, Started):
            done, found = len(entry.request.prompt), event.cached_tokens
        elif isinstance(event, TokenEvent):
            done, entry.crashes, entry.crashes_alone, entry.is_alone = 1, 0, 0, False
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
        self._accepted(accepted, request)
        entry = self.entries[request.id]
        for event in unpack_events(record.events):
            entry.take(event)
            self._progress(entry, event)
        entry.crashes, entry.crashes_alone = record.crashes, record.crashes_alone
        if record.ended is not None:
            entry.ended = Ended(*record.ended)
        if record.finished_at is not None:
            self._finish(entry, record.finished_at)
        elif record.epoch is not None:
            self._board_entry(entry, record.epoch, record.is_alone)

    # The pieces of it

    def active_boards(self) -> list[Board]:
        """Those that are at work already come first; who is left over is a warm spare."""
        up = [board for board in self.boards.values() if board.is_up]
        if len(up) > self.options.num_active:
            up.sort(key=lambda board: (not board.ids, board.epoch))
        return up[: self.options.num_active]

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
        entry.finished_at = now
        self.load.owed_tokens -= entry.owed
        entry.owed = 0
        self._finished[entry.id] = None
        self.counts["finished"] += 1
