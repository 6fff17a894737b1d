"""Streaming: a job's answers as they are made, one write for each step's news, until its client goes."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deploy.http.backend import OutOfRange, Part
from deploy.http.departure import departure
from deploy.http.dress import wants_msgpack
from deploy.http.edge import Edge
from deploy.http.errors import error_body
from deploy.http.frames import EventFrames, Frames, MsgpackFrames
from deploy.http.job import Job, digest_of, position_id, split_position
from deploy.http.merging import merged
from engine.completion import Piece, Usage
from engine.event import PromptScored
from engine.refusal import Refusal

HEARTBEAT_SECONDS = 10.0
STALL_SECONDS = 120.0  # for a reader that takes nothing


class Chunks(Protocol):
    """A route's shapes for a stream."""

    def opening(self) -> Iterable[dict[str, Any]]:
        """What comes before the first token."""
        ...

    def scored(self, number: int, scores: PromptScored) -> None:
        """Take note of a prompt's logprobs, which come before its answers' first pieces."""
        ...

    def chunk(self, answer: int, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        """The chunk for what came to one answer, if there is something to tell."""
        ...

    @property
    def tells_place(self) -> bool:
        """Whether a chunk says where in the text it stands, which takes all that was said before."""
        ...

    def pass_over(self, answer: int, piece: Piece) -> None:
        """Take note of what the reader of a resumed stream has of one answer."""
        ...

    def closing(self, usages: Sequence[Usage]) -> Iterable[dict[str, Any]]: ...


async def opened(
    edge: Edge, job: Job, had: list[int] | None, *, again: bool = False
) -> list[AsyncIterator[tuple[Part, ...]]]:
    """The job's streams, or the refusal of the first that cannot be opened. `again`: with what their reader has."""
    if had is not None:
        places = split_position(had, job.num_choices, len(job.requests))
        if max(had) > job.requests[0].sampling.max_tokens + 1:  # an end without a token counts too
            raise OutOfRange("the position lies behind the longest answer that was asked for", "Last-Event-ID")
        return [
            await edge.backend.follow(request.id, request.tenant, place, again=again)
            for request, place in zip(job.requests, places, strict=True)
        ]
    try:
        return [await edge.backend.stream(request, job.terms) for request in job.requests]
    except Refusal:
        await edge.left(job)
        raise


class Streamed(Response):
    """A job's answers as they are made. One write for each step's news."""

    def __init__(
        self,
        edge: Edge,
        http: HttpRequest,
        job: Job,
        streams: list[AsyncIterator[tuple[Part, ...]]],
        chunks: Chunks,
        had: list[int] | None,
    ) -> None:
        self.edge, self.job, self.streams, self.chunks = edge, job, streams, chunks
        self.is_resumed = had is not None
        self.had = list(had) if had is not None else [0] * job.num_answers
        self.frames: Frames = MsgpackFrames() if wants_msgpack(http.scope) else EventFrames()
        self.status_code, self.background = 200, None
        self.media_type = self.frames.media_type
        self.init_headers({"x-request-id": job.id, "cache-control": "no-store", "x-accel-buffering": "no"})
        self.usages: list[Usage] = []
        self._digest = digest_of(job.requests)
        self._tokens = edge.meters.tokens.labels(job.requests[0].adapter or "")
        self._writing_since: float | None = None
        self._is_quiet = False
        self._burst_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        watching = {asyncio.ensure_future(departure(receive)), asyncio.ensure_future(self._beat(send))}
        with self.edge.meters.streams.track_inprogress():
            try:
                await asyncio.wait({writing, *watching}, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    writing.result()
                else:
                    await self.edge.left(self.job)
            finally:
                for task in (writing, *watching):
                    task.cancel()
                await asyncio.gather(writing, *watching, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        began = time.monotonic()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if not self.is_resumed:
            await self._put(send, self._framed(self.chunks.opening()))
        try:
            async for number, parts in merged(self.streams):
                parts = self._unread(number, parts) if self.is_resumed else parts
                self._measure(parts)
                frames = b"".join(self._frames_of(number, parts))
                if frames:
                    await self._put(send, frames)
            await self._put(send, self._framed(self.chunks.closing(self.usages)))
        except Refusal as refusal:
            await self.edge.left(self.job)
            await self._put(send, self.frames.frame(error_body(refusal), None))
        self.edge.meters.whole.observe(time.monotonic() - began)
        await send({"type": "http.response.body", "body": self.frames.done, "more_body": False})

    async def _put(self, send: Send, frames: bytes) -> None:
        self._writing_since, self._is_quiet = time.monotonic(), False
        await send({"type": "http.response.body", "body": frames, "more_body": True})
        self._writing_since = None

    def _framed(self, payloads: Iterable[dict[str, Any]]) -> bytes:
        return b"".join(self.frames.frame(payload, self._position) for payload in payloads)

    @property
    def _position(self) -> str:
        return position_id(self.job.id, self._digest, self.had)

    def _frames_of(self, number: int, parts: tuple[Part, ...]) -> Iterable[bytes]:
        """The frames for one prompt's news, each answer's in one chunk."""
        pieces: dict[int, list[Piece]] = {}
        for part in parts:
            if isinstance(part, Piece):
                pieces.setdefault(number * self.job.num_choices + part.choice, []).append(part)
            elif isinstance(part, PromptScored):
                self.chunks.scored(number, part)
            else:
                self.usages.append(part)
        for answer, news in pieces.items():
            self.had[answer] += len(news)
            payload = self.chunks.chunk(answer, news)
            if payload is not None:
                yield self._framed([payload])

    def _unread(self, number: int, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """Those that the reader of a resumed stream has not got."""
        unread: list[Part] = []
        for part in parts:
            answer = number * self.job.num_choices + part.choice if isinstance(part, Piece) else 0
            if isinstance(part, Piece) and part.position < self.had[answer]:
                self.chunks.pass_over(answer, part)
            else:
                unread.append(part)
        return tuple(unread)

    def _measure(self, parts: tuple[Part, ...]) -> None:
        answers = [part.choice for part in parts if isinstance(part, Piece)]
        if not answers:
            return
        now, meters = time.monotonic(), self.edge.meters
        if not self.is_resumed and not any(self.had):
            meters.took_first_token(now - self._burst_at)
        else:
            meters.between_tokens.observe((now - self._burst_at) * len(set(answers)) / len(answers))
        self._burst_at = now
        self._tokens.inc(len(answers))

    async def _beat(self, send: Send) -> None:
        """Say now and then that the connection lives; return if its reader takes nothing for too long."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if self._writing_since is not None:
                if time.monotonic() - self._writing_since > STALL_SECONDS:
                    return
            elif self._is_quiet and self.frames.waiting:
                await send({"type": "http.response.body", "body": self.frames.waiting, "more_body": True})
            self._is_quiet = True
