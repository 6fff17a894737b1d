"""Bodies: how much may come, in which dress, and by when. Decides before the first byte where it can."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.http.errors import TooLarge, TooSlow, WrongMediaType, error_response

MAX_BODY_BYTES = 8 << 20
BODY_SECONDS = 30.0


class Bodies:
    """Middleware: a declared body that is too large is refused unread, an undeclared one where it becomes so."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES, seconds: float = BODY_SECONDS) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        encoding = headers.get(b"content-encoding", b"identity").lower()
        if encoding != b"identity":
            refusal = WrongMediaType("compressed bodies are not taken", "content-encoding")
            return await error_response(refusal, scope)(scope, receive, send)
        if int(headers.get(b"content-length", b"0")) > self.max_bytes:
            return await error_response(too_large(self.max_bytes), scope)(scope, receive, send)
        await self.app(scope, Limited(receive, self.max_bytes, self.seconds), send)


class Limited:
    """A request's `receive`, which counts bytes and watches the clock until the body is there. Raises the refusal."""

    def __init__(self, receive: Receive, max_bytes: int, seconds: float) -> None:
        self.max_bytes = max_bytes
        self.seconds = seconds
        self._receive = receive
        self._num_bytes = 0
        self._is_complete = False
        self._ends_at = asyncio.get_running_loop().time() + seconds

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._ends_at):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow(f"the request's body did not come within {self.seconds:g} seconds") from None
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self.max_bytes:
            raise too_large(self.max_bytes)
        self._is_complete = not message.get("more_body", False)
        return message


def too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"a request's body may have {max_bytes} bytes")
