"""Polls: clients that wait to hear of their requests. Knows what each has and wants; sends nothing by itself.

A client asks for all its requests at once and says how many pieces of each it has, so the server keeps nothing about
it that a crash could lose, and one message carries a step's tokens to all its streams.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from actors.entry import Entry
from actors.ledger import Ledger
from actors.pid import From
from actors.refusals import UnknownRequest
from engine.completion import Completion, Piece, Usage
from engine.event import FinishReason, TokenLogprob

MAX_PIECES = 128  # of a choice in one answer, and unread in one inbox; the rest stays where it is, in the ledger
Had = tuple[int, ...]
PlainPiece = tuple[int, int, str, tuple[int, ...], FinishReason | None, str, TokenLogprob | None, str | None]
"""The fields of a Piece: tuples cross processes at a fraction of a record's cost."""


@dataclass(frozen=True, slots=True)
class Poll:
    """What a client has of each of its requests: pieces by choice, or None where it wants the whole answer at once."""

    wants: dict[str, Had | None]
    wait_seconds: float = 2.0
    listener: str = ""  # what this client submits while it waits is added to its wants
    tenant: str = ""
    kept: tuple[str, ...] = ()  # requests of which it wants no news now, having more of them than it can use


class End(NamedTuple):
    """How a request ended. `code` is a refusal's, if it did not end well."""

    usage: Usage
    code: str | None
    message: str | None
    completion: Completion | None  # for who wanted the whole


class Part(NamedTuple):
    """What is new of one request."""

    id: str
    pieces: list[PlainPiece]
    end: End | None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None  # beside a stream's first pieces


@dataclass(slots=True)
class Waiting:
    """One poll that is not answered yet."""

    from_: From
    poll: Poll
    until: float
    wants: dict[str, Had | None] = field(default_factory=dict)


class Polls:
    """Owned by one request server."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._waiting: dict[Any, Waiting] = {}  # by the call's reference
        self._by_request: dict[str, set[Any]] = {}
        self._by_listener: dict[str, Any] = {}
        self._joined: dict[str, dict[str, Had | None]] = {}  # by listener: submitted between two of its polls

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, poll: Poll, from_: From, now: float) -> list[Part]:
        """What there is to say now; if nothing, the poll waits."""
        self.touch(poll.kept, now)
        wants = {**self._joined.pop(poll.listener, {}), **poll.wants}
        parts = self.news(wants, poll.tenant, now)
        if parts or poll.wait_seconds <= 0:
            return parts
        self._waiting[from_.ref] = Waiting(from_, poll, now + poll.wait_seconds, wants)
        for request_id in wants:
            self._by_request.setdefault(request_id, set()).add(from_.ref)
        if poll.listener:
            self._by_listener[poll.listener] = from_.ref
        return []

    def join(self, listener: str, request_id: str, had: Had | None) -> None:
        """A client has submitted one more: the poll in which it waits is to tell of it, or else its next one."""
        ref = self._by_listener.get(listener)
        if ref in self._waiting:
            self._waiting[ref].wants[request_id] = had
            self._by_request.setdefault(request_id, set()).add(ref)
        else:
            self._joined.setdefault(listener, {})[request_id] = had

    def wake(self, request_ids: set[str], now: float) -> list[tuple[From, list[Part]]]:
        """The answers to those polls for which there is news."""
        refs = {ref for request_id in request_ids for ref in self._by_request.get(request_id, ())}
        answers = []
        for ref in refs:
            waiting = self._waiting[ref]
            wants = {name: had for name, had in waiting.wants.items() if name in request_ids}
            parts = self.news(wants, waiting.poll.tenant, now)
            if parts:
                answers.append((self._end(ref), parts))
        return answers

    def expire(self, now: float) -> list[From]:
        """Polls that waited long enough; while they did, their clients were there."""
        for waiting in self._waiting.values():
            self.touch(waiting.wants, now)
        self._joined = {name: wants for name, wants in self._joined.items() if any(map(self.ledger.knows, wants))}
        return [self._end(ref) for ref, waiting in list(self._waiting.items()) if waiting.until <= now]

    def touch(self, request_ids: Iterable[str], now: float) -> None:
        for request_id in request_ids:
            entry = self.ledger.entries.get(request_id)
            if entry is not None:
                entry.seen_at = now

    def news(self, wants: dict[str, Had | None], tenant: str, now: float) -> list[Part]:
        parts = []
        for request_id, had in wants.items():
            entry = self.ledger.look(request_id)
            if entry is None or entry.request.tenant != tenant or not fits(had, entry):
                parts.append(unknown(request_id))
                continue
            entry.seen_at = now
            part = part_of(entry, had)
            if part is not None:
                parts.append(part)
        return parts

    def _end(self, ref: Any) -> From:
        waiting = self._waiting.pop(ref)
        for request_id in waiting.wants:
            refs = self._by_request.get(request_id)
            if refs is not None:
                refs.discard(ref)
                if not refs:
                    del self._by_request[request_id]
        if self._by_listener.get(waiting.poll.listener) == ref:
            del self._by_listener[waiting.poll.listener]
        return waiting.from_


def fits(had: Had | None, entry: Entry) -> bool:
    """Whether a client can have had that: a number for each choice, within what there can be."""
    most = entry.request.sampling.max_tokens + 1
    return had is None or (len(had) == len(entry.pieces) and min(had) >= 0 and max(had) <= most)


def part_of(entry: Entry, had: Had | None) -> Part | None:
    if had is None:
        return Part(entry.id, [], end_of(entry, is_whole=True)) if entry.is_finished else None
    pieces = [plain_piece(piece) for piece in entry.since(had, MAX_PIECES)]
    if not pieces and not entry.is_finished:
        return None
    scores = None if any(had) else entry.prompt_logprobs
    is_cut = any(len(there) > number + MAX_PIECES for there, number in zip(entry.pieces, had, strict=True))
    end = end_of(entry, is_whole=False) if entry.is_finished and not is_cut else None
    return Part(entry.id, pieces, end, scores)


def end_of(entry: Entry, *, is_whole: bool) -> End:
    completion = entry.transcript.completion()
    code = message = None
    if entry.ended is not None:
        code, message = entry.ended.code, entry.ended.message
    return End(completion.usage, code, message, completion if is_whole else None)


def unknown(request_id: str) -> Part:
    message = f"no request has the id {request_id[:60]!r}, or not so many pieces"
    return Part(request_id, [], End(Usage(0, 0), UnknownRequest.code, message, None))


def plain_piece(piece: Piece) -> PlainPiece:
    return piece[:]


def piece_of(plain: PlainPiece) -> Piece:
    return Piece(*plain)
