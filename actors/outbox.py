"""Outbox: what a request server has decided and nobody has seen yet. It is written to the journal, and then sent.

So a client that was answered can rely on the journal, and a model server never has a request whose attempt is not on
record.
"""

import logging
from dataclasses import dataclass

from actors.journal import Journal
from actors.ledger import Ledger
from actors.ledger_records import Attempted, Record, to_plain
from actors.messages import Run
from actors.node import cast, me, now, reply
from actors.pid import From, Pid
from actors.polls import Polls
from actors.refusals import JournalFailing
from engine.wire import pack_request

log = logging.getLogger(__name__)
MOST_PAST_BYTES = 1 << 20  # that a restart reads record by record, in about half a second


@dataclass(frozen=True, slots=True)
class Promise:
    """A client that is told of its acceptance as soon as that is written."""

    from_: From
    request_id: str
    answer: object
    is_new: bool  # else it was accepted before, and is on record


class Outbox:
    """Owned by one request server, which has the journal."""

    def __init__(self, journal: Journal, ledger: Ledger, polls: Polls) -> None:
        self.journal = journal
        self.ledger = ledger
        self.polls = polls
        self.touched: set[str] = set()  # requests of which there is news
        self._promises: list[Promise] = []
        self._most_past_bytes = MOST_PAST_BYTES

    def record(self, record: Record | None) -> None:
        if record is not None:
            self.journal.append(to_plain(record))

    def promise(self, promise: Promise) -> None:
        self._promises.append(promise)

    def flush(self) -> None:
        """Decide who is sent where, write all that was decided, and let it be seen."""
        attempts = self.ledger.dispatch(now())
        for attempt in attempts:
            self.record(attempt)
        promises, self._promises = self._promises, []
        try:
            self.journal.commit(is_lasting=bool(promises))
        except JournalFailing as refusal:
            self._take_back(promises, refusal)
        else:
            for promise in promises:
                reply(promise.from_, promise.answer)
        for attempt in attempts:
            self._send(attempt)
        if self.touched:
            touched, self.touched = self.touched, set()
            for from_, parts in self.polls.wake(touched, now()):
                reply(from_, parts)

    def compact_if_needed(self) -> None:
        """Begin a new journal when most of this one is past, and when this one can no longer be written."""
        journal = self.journal
        if journal.num_bytes - journal.num_compacted_bytes <= self._most_past_bytes and journal.failure is None:
            return
        try:
            journal.compact(to_plain(record) for record in self.ledger.snapshot(now()))
        except JournalFailing as refusal:
            log.warning("%s: %s", me(), refusal.message)
        archived = self.ledger.num_archived_bytes
        living = journal.num_compacted_bytes - archived  # packed anew each time
        self._most_past_bytes = max(MOST_PAST_BYTES, archived // 4, living)

    def _take_back(self, promises: list[Promise], refusal: JournalFailing) -> None:
        for promise in promises:
            if promise.is_new:
                self.ledger.withdraw(promise.request_id)
        for promise in promises:
            reply(promise.from_, promise.answer if self.ledger.knows(promise.request_id) else refusal)

    def _send(self, attempt: Attempted) -> None:
        entries = [self.ledger.entries[name] for name in attempt.ids if name in self.ledger.entries]
        packed = tuple(pack_request(entry.to_send()) for entry in entries)
        if packed:
            cast(Pid.parse(attempt.epoch), Run(me(), packed, attempt.is_alone))
