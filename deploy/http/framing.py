"""Framing: HTTP/1.1 as bytes, its limits and its clock. What is broken or too slow never becomes a request.

uvicorn's h11 protocol with a stricter parser: few and small headers, one way of saying how long a body is, chunks
that are worth their frame, and a time by which a request's head must be there.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from actors.refusals import Overloaded, Unavailable
from deploy.http.errors import TooLarge, TooSlow, error_response
from engine.refusal import BadRequest, Refusal

MAX_HEAD_BYTES = 32 << 10
ACCEPT = re.compile(rb"^accept:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
MAX_HEADERS = 100
MAX_SMALL_CHUNKS = 2048  # of a body, if they are small on average
MIN_CHUNK_BYTES = 64
HEAD_SECONDS = 10.0
LINGER_SECONDS = 5.0  # in which the rest of what was refused may still come, unread
MAX_CONNECTIONS = 4096
MAX_PIPELINED = 64  # requests in a row that did not wait for the answer before
REFUSALS: dict[int, type[Refusal]] = {  # else BadRequest
    408: TooSlow,
    413: TooLarge,
    429: Overloaded,
    431: TooLarge,
    503: Unavailable,
}


@dataclass(slots=True)
class Fault:
    """Why a connection is about to be closed."""

    status: int
    message: str


class Parser(h11.Connection):
    """h11's parser, which remembers what was wrong with which status."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.fault = Fault(400, "this is not HTTP/1.1")
        self._num_chunks = 0
        self._num_bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._latest = b""

    def receive_data(self, data: bytes) -> None:
        self._latest = data
        super().receive_data(data)

    def told_headers(self) -> list[tuple[bytes, bytes]]:
        """The request's headers; of one that cannot be read what its latest bytes say of the answer it accepts."""
        if self.their_state is not h11.IDLE and self._headers:
            return self._headers
        found = ACCEPT.search(self._latest)
        return [] if found is None else [(b"accept", found[1])]

    def next_event(self) -> Any:
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as trouble:
            status = 431 if trouble.error_status_hint == 431 else 400
            self.fault = Fault(status, f"this is not HTTP/1.1: {trouble}"[:200])
            raise
        if isinstance(event, h11.Request):
            self._num_chunks = self._num_bytes = 0
            self._headers = list(event.headers)
            self._check_head(event)
        elif isinstance(event, h11.EndOfMessage):
            self._headers = []
        elif isinstance(event, h11.Data):
            self._num_chunks += 1
            self._num_bytes += len(event.data)
            if self._num_chunks > MAX_SMALL_CHUNKS and self._num_bytes < MIN_CHUNK_BYTES * self._num_chunks:
                self._refuse(413, f"the body comes in chunks of fewer than {MIN_CHUNK_BYTES} bytes")
        return event

    def _check_head(self, request: h11.Request) -> None:
        names = [name for name, _ in request.headers]
        if len(names) > MAX_HEADERS:
            self._refuse(431, f"the request has {len(names)} headers; {MAX_HEADERS} is the limit")
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > MAX_HEAD_BYTES:
            self._refuse(431, f"the request's head has {size} bytes; {MAX_HEAD_BYTES} is the limit")
        if b"transfer-encoding" in names and b"content-length" in names:
            self._refuse(400, "the request has both a content-length and a transfer-encoding")

    def _refuse(self, status: int, message: str) -> None:
        self.fault = Fault(status, message)
        raise h11.RemoteProtocolError(message, status)


class StrictProtocol(H11Protocol):
    """One connection."""

    conn: Parser

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = Parser()
        self._head_timer: asyncio.TimerHandle | None = None
        self._num_pipelined = 0
        self._is_parting = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, f"{MAX_CONNECTIONS} connections are open, and that is the limit")
            self.transport.close()  # and does not stay among them
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_parting:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._num_pipelined = 0
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cancel_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._await_head()

    def on_response_complete(self) -> None:
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE and self.conn.trailing_data[0]:
            self._num_pipelined += 1
            if self._num_pipelined > MAX_PIPELINED:
                self.conn.start_next_cycle()
                self._refuse(429, f"{MAX_PIPELINED} requests in a row did not wait for their answers")
                return
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self.loop.call_later(LINGER_SECONDS, self._stop_lingering, self.cycle)

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser found, if an answer can still be given, and part."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE) or self.transport.is_closing():
            self.transport.close()
            return
        fault = self.conn.fault
        refusal = REFUSALS.get(fault.status, BadRequest)(fault.message)
        answer = error_response(refusal, {"headers": self.conn.told_headers()})
        headers = [*answer.raw_headers, (b"connection", b"close")]
        reason = STATUS_PHRASES.get(fault.status, b"")
        for event in (
            h11.Response(status_code=fault.status, headers=headers, reason=reason),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self._part()

    def _refuse(self, status: int, message: str) -> None:
        self.conn.fault = Fault(status, message)
        self.send_400_response("")

    def _part(self) -> None:
        """Say no more, and let what is on its way come for a while, unread.

        Closing at once would reset the connection, and the client might not see its answer.
        """
        self._is_parting = True
        self._cancel_head_timer()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.resume_reading()
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_lingering(self, cycle: object) -> None:
        if self.cycle is cycle and self.conn.their_state is h11.SEND_BODY:
            self.transport.close()

    def _head_is_late(self) -> None:
        self._head_timer = None
        self._refuse(408, f"the request's head did not come within {HEAD_SECONDS:g} seconds")
