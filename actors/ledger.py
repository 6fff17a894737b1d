"""Ledger: what a request server decides. Pure: no process, no clock, no file; facts and moments come in.

Every decision is applied to the book here and handed out as records. The server writes them to its journal before
anybody outside sees the effect; replaying them makes the same ledger again, whatever was killed and when. What a
request has is its tokens, so a model server's death costs it nothing but time: it is sent again with these.

A request is suspected when two model servers died with it on board and it got no further in between, as one that
makes progress is not what kills them. A suspect is run alone. If a model server dies twice while it runs alone, the
request is answered `request_poisoned`. (Counting crashes without looking at progress was rejected: where machines
die for other reasons, every long request would sooner or later be suspected.)
"""

from collections.abc import Iterator, Sequence

from actors.book import Book
from actors.entry import Entry
from actors.ledger_records import Accepted, Attempted, Crashed, Ended, Opened, Released, Told
from actors.placement import Board, place
from actors.refusals import Conflict, DeadlinePassed, UnknownRequest
from engine.event import Event
from engine.request import Request
from engine.wire import pack_request


class Ledger(Book):
    """Owned by one request server: a book, and what is to be written in it."""

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
        known = self.look(request.id)
        if known is not None:
            if known.accepted.body != body or known.request.tenant != request.tenant:
                raise Conflict(f"the id {request.id[:60]!r} belongs to another request", "id")
            known.seen_at = now
            return None
        if deadline is not None and deadline <= now:
            raise DeadlinePassed("the deadline had passed when the request came", "deadline")
        self.load.check(request.cost, self.num_living, now, deadline)
        record = Accepted(now, pack_request(request), body, deadline, lease_seconds)
        self._accepted(record, request)
        return record

    def withdraw(self, request_id: str) -> None:
        """Forget a request that could not be written down, before anything was done for it."""
        entry = self.entries.pop(request_id)
        self.load.owed_tokens -= entry.owed
        self.counts["accepted"] -= 1
        if entry.is_finished:  # it was cancelled meanwhile, or came too late
            del self._finished[request_id]
            self.counts["finished"] -= 1
        else:
            self._leave_board(entry)
            self._waiting.forget(request_id)

    def find(self, request_id: str, tenant: str = "") -> Entry:
        entry = self.look(request_id)
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
            request_id = next(iter(self._finished))
            entry = self.entries.get(request_id)
            finished_at = self._archive[request_id].kept.finished_at if entry is None else entry.finished_at
            assert finished_at is not None
            if finished_at + self.options.keep_seconds > now and len(self._finished) <= self.options.max_kept:
                return
            del self._finished[request_id]
            self.entries.pop(request_id, None)
            self._archive.drop(request_id)

    # What model servers bring

    def model_up(self, epoch: str) -> None:
        self._board(epoch).is_up = True

    def model_busy(self, epoch: str) -> None:
        """It lives, but takes nothing new."""
        self._board(epoch).is_up = False

    def model_gone(self, epoch: str) -> None:
        """It ended in order, and has nothing of ours any more."""
        self.boards.pop(epoch, None)

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

    def active_boards(self) -> list[Board]:
        """Those that are at work already come first; who is left over is a warm spare."""
        up = [board for board in self.boards.values() if board.is_up]
        if len(up) > self.options.num_active:
            up.sort(key=lambda board: (not board.ids, board.epoch))
        return up[: self.options.num_active]

    def open(self, now: float, clock: str) -> Opened:
        """Begin to write, after a replay or not."""
        record = Opened(now, clock)
        self._opened(record)
        for entry in self.entries.values():
            entry.seen_at = now
        return record
