"""Inbox: one request as its client has it so far. Threads and event loops wait at it; it asks nobody for more."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from actors import refusals
from actors.polls import MAX_PIECES, End, Had, Part, PlainPiece, piece_of
from engine import refusal as engine_refusals
from engine.completion import Completion, Piece
from engine.event import TokenLogprob
from engine.refusal import Refusal

KINDS: dict[str, type[Refusal]] = {
    kind.code: kind
    for module in (engine_refusals, refusals)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Refusal) and "code" in vars(kind)
}

# Seconds at most that a reader sleeps at once: a Ctrl-C that comes in the instant before it does is only seen after.
LOOKS_UP = 1.0


def refusal_of(code: str, message: str | None) -> Refusal:
    """The refusal that a code stands for."""
    return KINDS.get(code, Refusal)(message or code)


class Inbox:
    """Filled by one thread, read by one reader. `num_choices` None: the whole answer is wanted, and no pieces."""

    def __init__(self, request_id: str, had: Had | None) -> None:
        self.id = request_id
        self.had: list[int] | None = None if had is None else list(had)
        self.end: End | None = None
        self.failure: Refusal | None = None
        self.prompt_logprobs: tuple[TokenLogprob, ...] | None = None  # there before the first piece
        self._pieces: deque[Piece] = deque()
        self._changed = threading.Condition()
        self._sleeper: Sleeper | None = None

    @property
    def wants(self) -> Had | None:
        return None if self.had is None else tuple(self.had)

    @property
    def is_over(self) -> bool:
        return self.end is not None or self.failure is not None

    @property
    def is_full(self) -> bool:
        """Whether its reader is so far behind that it should hear no more for now."""
        return self.had is not None and len(self._pieces) >= MAX_PIECES * len(self.had)

    @property
    def has_pieces(self) -> bool:
        return bool(self._pieces)

    def fits(self, part: Part) -> bool:
        """Whether it goes on where this one stands, and as wanted: an earlier reader may have asked for it."""
        end, is_whole = part.end, part.end is not None and part.end.completion is not None
        if self.had is None:
            return is_whole or (end is not None and end.code is not None)
        firsts = {choice: position for choice, position, *_ in reversed(part.pieces)}
        return not is_whole and all(position <= self.had[choice] for choice, position in firsts.items())

    def feed(self, part: Part) -> "Sleeper | None":
        """Take what is new; what came before is passed over. Who is returned is to be woken."""
        with self._changed:
            if part.prompt_logprobs is not None:
                self.prompt_logprobs = part.prompt_logprobs
            for plain in part.pieces:
                self._feed_piece(plain)
            if part.end is not None:
                self.end = part.end
            return self._notify()

    def fail(self, refusal: Refusal) -> "Sleeper | None":
        with self._changed:
            self.failure = refusal
            return self._notify()

    def take(self, timeout: float | None = None) -> list[Piece]:
        """What came since the last time, as soon as there is something; nothing once it is over."""
        ends = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._changed.wait_for(
                lambda: self._pieces or self.is_over, min(LOOKS_UP, ends - time.monotonic())
            ):
                if time.monotonic() >= ends:
                    raise TimeoutError(f"nothing came of request {self.id!r} within {timeout} s")
            return self._drain()

    async def take_async(self) -> list[Piece]:
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._pieces or self.is_over:
                    self._sleeper = None
                    return self._drain()
                self._sleeper = Sleeper(loop, event)
            await event.wait()
            event.clear()

    def ended(self) -> End:
        """How it ended. Raises what ended it before its last token, unless that was its client's own wish."""
        if self.failure is not None:
            raise self.failure
        assert self.end is not None
        if self.end.code is not None:
            raise refusal_of(self.end.code, self.end.message)
        return self.end

    def completion(self) -> Completion:
        completion = self.ended().completion
        assert completion is not None
        return completion

    def _feed_piece(self, plain: PlainPiece) -> None:
        assert self.had is not None
        choice, position = plain[:2]
        if position < self.had[choice]:
            return
        self.had[choice] += 1
        self._pieces.append(piece_of(plain))

    def _drain(self) -> list[Piece]:
        pieces = list(self._pieces)
        self._pieces.clear()
        return pieces

    def _notify(self) -> "Sleeper | None":
        self._changed.notify_all()
        sleeper, self._sleeper = self._sleeper, None
        return sleeper


class Sleeper(NamedTuple):
    """Who waits at an inbox, and on which event loop."""

    loop: asyncio.AbstractEventLoop
    event: asyncio.Event


def wake(sleepers: Iterable[Sleeper | None]) -> None:
    """Wake them from another thread. A loop is told once, however many of its readers have news of one step."""
    events: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    for sleeper in sleepers:
        if sleeper is not None:
            events.setdefault(sleeper.loop, []).append(sleeper.event)
    for loop, of_one in events.items():
        with suppress(RuntimeError):  # the loop is closed: nobody is left
            loop.call_soon_threadsafe(set_all, of_one)


def set_all(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        event.set()
