"""InlineRequests: the requests of this process and those who wait for news of them. The ledger of a request server,
without its journal. Owns who is told what; refuses to know the engine and its thread.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator

from actors.asking import body_of
from actors.entry import Entry
from actors.inbox import refusal_of
from actors.ledger import Ledger
from actors.ledger_options import LedgerOptions
from actors.refusals import Unavailable
from deploy.http.backend import Cancelled, OutOfRange, Part, Terms
from engine.completion import Completion
from engine.event import PromptScored
from engine.refusal import BadRequest
from engine.request import Request
from engine.vocabulary import Vocabulary


class InlineRequests:
    """Used on one event loop."""

    def __init__(self, vocabulary: Vocabulary, options: LedgerOptions) -> None:
        self.ledger = Ledger(vocabulary, options)
        self._readers: dict[str, set[asyncio.Event]] = {}  # woken by every step that has news
        self._waiters: dict[str, set[asyncio.Event]] = {}  # woken by the end

    def accept(self, request: Request, terms: Terms) -> None:
        """Take a request; one that is known already, asked in the same words, is the same one."""
        now = time.monotonic()
        deadline = None if terms.deadline_seconds is None else now + terms.deadline_seconds
        self.ledger.accept(request, body_of(request), now, deadline, terms.lease_seconds)

    async def completion(self, request_id: str, tenant: str) -> Completion:
        """The whole answer, when it is there."""
        entry = self.ledger.find(request_id, tenant)
        with registered(self._waiters, request_id) as ended:
            while not entry.is_finished:
                ended.clear()
                await ended.wait()
        check_ending(entry)
        return entry.transcript.completion()

    def follow(
        self, request_id: str, tenant: str, had: tuple[int, ...] | None = None, *, again: bool = False
    ) -> AsyncIterator[tuple[Part, ...]]:
        """The news of a request, from its beginning or behind what its reader has; `again`: with that too."""
        entry = self.ledger.find(request_id, tenant)
        if had is not None and len(had) != len(entry.pieces):
            raise BadRequest(f"{len(had)} positions came; the request has {len(entry.pieces)} choices", "Last-Event-ID")
        if had is not None and any(number > len(pieces) for number, pieces in zip(had, entry.pieces, strict=True)):
            raise OutOfRange(f"the stream has not come to {'.'.join(map(str, had))} yet", "Last-Event-ID")
        return self._bursts(entry, (0,) * len(entry.pieces) if again else had)

    async def _bursts(self, entry: Entry, had: tuple[int, ...] | None) -> AsyncIterator[tuple[Part, ...]]:
        wants_scores = not any(had or ()) and entry.request.sampling.prompt_logprobs is not None
        counts = list(had or (0,) * len(entry.pieces))
        with registered(self._readers, entry.id) as news:
            while True:
                news.clear()
                parts: list[Part] = []
                if wants_scores and entry.has_scored_prompt:
                    parts.append(PromptScored(entry.id, entry.prompt_logprobs or ()))
                    wants_scores = False
                parts += entry.since(tuple(counts))
                counts = [len(pieces) for pieces in entry.pieces]
                if parts:
                    yield tuple(parts)
                elif entry.is_finished:
                    break
                else:
                    await news.wait()
        check_ending(entry)
        yield (entry.transcript.usage(),)

    def wake(self, request_ids: Iterable[str]) -> None:
        """There is news of these."""
        for request_id in request_ids:
            for news in self._readers.get(request_id, ()):
                news.set()
            entry = self.ledger.entries.get(request_id)
            if entry is None or entry.is_finished:
                for ended in self._waiters.get(request_id, ()):
                    ended.set()

    def expire(self) -> list[str]:
        """End what is late or was left, and forget what is long over: the ids of those that ended."""
        now = time.monotonic()
        for request_id in self._readers.keys() | self._waiters.keys():
            if request_id in self.ledger.entries:
                self.ledger.entries[request_id].seen_at = now
        ids = [ended.id for ended, _ in self.ledger.expire(now)]
        self.wake(ids)
        self.ledger.forget(now)
        return ids

    def living(self) -> list[Entry]:
        return [entry for entry in self.ledger.entries.values() if not entry.is_finished]


@contextlib.contextmanager
def registered(table: dict[str, set[asyncio.Event]], request_id: str) -> Iterator[asyncio.Event]:
    """An event in the table, as long as it is waited for."""
    event = asyncio.Event()
    table.setdefault(request_id, set()).add(event)
    try:
        yield event
    finally:
        table[request_id].discard(event)
        if not table[request_id]:
            del table[request_id]


def check_ending(entry: Entry) -> None:
    """Raise what ended a request, if it was not its own last token."""
    if entry.ended is not None:
        if entry.ended.code is None:
            raise Cancelled(entry.ended.message or "the request was cancelled")
        raise refusal_of(entry.ended.code, entry.ended.message)
    for pieces in entry.pieces:
        if pieces and pieces[-1].finish_reason in ("error", "abort"):
            raise Unavailable(pieces[-1].message or "the engine gave the request up")
