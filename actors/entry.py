"""Entry: one request as its request server sees it, from acceptance to the moment it is forgotten."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from actors.archive import Packed
from actors.ledger_records import Accepted, Ended, Kept, More
from engine.completion import Piece, Transcript
from engine.event import ChoiceEnded, Event, FinishReason, PromptScored, Started, TokenEvent, TokenLogprob, token_event
from engine.request import Request
from engine.wire import pack_events

MOST_EVENTS = 1 << 14  # in one record


@dataclass(slots=True)
class Entry:
    """Owned by the Ledger, and changed by its records alone."""

    request: Request
    accepted: Accepted
    transcript: Transcript
    pieces: list[list[Piece]]  # by choice: a piece a token, and one more where the end brought no token
    seen_at: float  # when its client last showed itself
    epoch: str | None = None  # the model server that has it
    is_alone: bool = False
    crashes: int = 0  # of model servers that had it, since it last made progress
    crashes_alone: int = 0
    ended: Ended | None = None
    finished_at: float | None = None
    has_started: bool = False
    has_scored_prompt: bool = False
    owed: int = 0  # tokens of work that it may still take
    early: list[Event] = field(default_factory=list)  # what was told beside the pieces

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def is_finished(self) -> bool:
        return self.finished_at is not None

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.transcript.tokens))

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob, ...] | None:
        return next((event.logprobs for event in self.early if isinstance(event, PromptScored)), None)

    @property
    def is_suspect(self) -> bool:
        """Whether it was on board of two crashes and got no further in between."""
        return self.crashes >= 2

    def to_send(self) -> Request:
        """The request with the tokens it has already."""
        tokens = self.transcript.tokens
        return replace(self.request, resumed=tokens) if any(tokens) else self.request

    def take(self, event: Event) -> bool:
        """Take an event of the model server that has this request; False for what is known already."""
        match event:
            case TokenEvent(choice=choice, position=position):
                is_next = self.is_open(choice) and position == len(self.pieces[choice])
                return is_next and self._keep(event, choice)
            case ChoiceEnded(choice=choice):
                return self.is_open(choice) and self._keep(event, choice)
            case Started():
                is_first, self.has_started = not self.has_started, True
                return is_first and self._note(event)
            case PromptScored():
                is_first, self.has_scored_prompt = not self.has_scored_prompt, True
                return is_first and self._note(event)
            case _:
                return False

    def is_open(self, choice: int) -> bool:
        """Whether this choice exists and has not ended."""
        if not 0 <= choice < len(self.pieces):
            return False
        pieces = self.pieces[choice]
        return not pieces or pieces[-1].finish_reason is None

    def misses(self, event: Event) -> bool:
        """Whether something between what we have and this event was lost."""
        return (
            isinstance(event, TokenEvent)
            and self.is_open(event.choice)
            and event.position > len(self.pieces[event.choice])
        )

    def absolve(self) -> None:
        """It got further: what killed a model server before was not it."""
        self.crashes, self.crashes_alone, self.is_alone = 0, 0, False

    def close(self, ended: Ended) -> None:
        """End the choices that are open."""
        self.ended = ended
        reason: FinishReason = "abort" if ended.code is None else "error"
        for choice in range(len(self.pieces)):
            if self.is_open(choice):
                self.take(ChoiceEnded(self.id, choice, reason, ended.message))

    def history(self) -> Iterator[Event]:
        """All events taken so far, one choice after the other."""
        yield from self.early
        for pieces in self.pieces:
            for piece in pieces:
                yield event_of(self.id, piece)

    def since(self, had: tuple[int, ...], most: int | None = None) -> list[Piece]:
        """The pieces that a client has not got yet, given how many of each choice it has; `most` of each choice."""
        return [
            piece
            for pieces, number in zip(self.pieces, had, strict=True)
            for piece in pieces[number : None if most is None else number + most]
        ]

    def packed(self, now: float) -> Packed:
        """All of it: one record, and more where its history is long."""
        history = self.history()
        parts = iter(lambda: list(islice(history, MOST_EVENTS)), [])
        kept = self._kept(now, pack_events(next(parts, [])))
        return Packed(kept, tuple(More(now, self.id, pack_events(part)) for part in parts))

    def _kept(self, now: float, events: bytes) -> Kept:
        return Kept(
            now,
            tuple(self.accepted),
            events,
            self.epoch,
            self.is_alone,
            self.crashes,
            self.crashes_alone,
            None if self.ended is None else tuple(self.ended),
            self.finished_at,
        )

    def shift_clock(self, seconds: float) -> None:
        """Express its moments on a clock that stands so much later."""
        deadline = self.accepted.deadline
        self.accepted = self.accepted._replace(
            now=self.accepted.now + seconds, deadline=None if deadline is None else deadline + seconds
        )
        if self.finished_at is not None:
            self.finished_at += seconds

    def _keep(self, event: TokenEvent | ChoiceEnded, choice: int) -> bool:
        piece = self.transcript.add(event)
        assert piece is not None
        self.pieces[choice].append(piece)
        return True

    def _note(self, event: Any) -> bool:
        self.transcript.add(event)
        self.early.append(event)
        return True


def event_of(request_id: str, piece: Piece) -> Event:
    """The event that a piece came from."""
    if piece.tokens:
        (token,) = piece.tokens
        return token_event((request_id, piece.choice, piece.position, token, piece.finish_reason, piece.logprob))
    assert piece.finish_reason is not None
    return ChoiceEnded(request_id, piece.choice, piece.finish_reason, piece.message)
