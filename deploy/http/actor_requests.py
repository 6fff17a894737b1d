"""One request and the system of processes: how it is said to a `Client`, and how its stream's end is read."""

from asyncio import Future
from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any

from actors.refusals import Unavailable
from actors.stream import Stream
from deploy.http.backend import Cancelled, Part, Terms
from engine.completion import Piece
from engine.event import PromptScored
from engine.request import Request, Sampling

DEFAULTS = Sampling()


def check_ending(finish_reason: str | None, message: str | None) -> None:
    """Raise what ended a choice, if it was not its own last token."""
    if finish_reason == "abort":
        raise Cancelled("the request was cancelled")
    if finish_reason == "error":
        raise Unavailable(message or "the engine gave the request up")


async def bursts_of(stream: Stream) -> AsyncIterator[list[Piece]]:
    """A stream's pieces as they come. Raises what ended it, once that is known: a piece does not have its code."""
    endings: list[Piece] = []
    async for pieces in stream.bursts():
        endings += [piece for piece in pieces if piece.finish_reason is not None]
        yield pieces
    for piece in endings:
        check_ending(piece.finish_reason, piece.message)


def words_of(request: Request, terms: Terms) -> dict[str, Any]:
    """A request in the words of `Client`."""
    names = (field.name for field in fields(Sampling))
    changed = {name: getattr(request.sampling, name) for name in names}
    words = {name: value for name, value in changed.items() if value != getattr(DEFAULTS, name)}
    return words | {
        "max_tokens": request.sampling.max_tokens,
        "adapter": request.adapter,
        "priority": request.priority,
        "deadline_seconds": terms.deadline_seconds,
        "lease_seconds": terms.lease_seconds,
    }


def scores_of(stream: Stream) -> tuple[PromptScored, ...]:
    """What a stream tells of its prompt; it is there before the first piece."""
    scores = stream.prompt_logprobs
    return () if scores is None else (PromptScored(stream.id, scores),)


async def chained(
    first: "Future[tuple[Part, ...]]", rest: AsyncIterator[tuple[Part, ...]]
) -> AsyncIterator[tuple[Part, ...]]:
    """A stream whose first burst is on its way already."""
    try:
        yield await first
    except StopAsyncIteration:
        return
    async for burst in rest:
        yield burst
