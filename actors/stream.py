"""Stream: the pieces of one request, as they come, to whoever asked for them."""

from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from actors.inbox import Inbox
from actors.line import Line
from engine.completion import Piece, Usage
from engine.event import TokenLogprob


class Owner(Protocol):
    """The client whose stream it is."""

    @property
    def is_here(self) -> bool: ...

    def check_process(self) -> None: ...

    def cancel(self, id: str, tenant: str | None = None) -> bool: ...


class Stream:
    """Iterate over it, or over it asynchronously; closing it early cancels the request."""

    def __init__(self, client: Owner, line: Line, inbox: Inbox, tenant: str) -> None:
        self.id = inbox.id
        self._client = client
        self._line = line
        self._inbox = inbox
        self._tenant = tenant
        self._is_left = False
        self._taken = deque[Piece]()  # out of the inbox, and not told yet

    def __iter__(self) -> Iterator[Piece]:
        """To its end; a loop that is left before cancels it."""
        try:
            while (piece := next(self, None)) is not None:
                yield piece
        finally:
            self.close()

    def __next__(self) -> Piece:
        self._client.check_process()
        while not self._taken:
            if self._inbox.is_over and not self._inbox.has_pieces:
                self._inbox.ended()
                raise StopIteration
            self._taken.extend(self._inbox.take())
        return self._taken.popleft()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            while self._taken or not self._inbox.is_over or self._inbox.has_pieces:
                while self._taken:
                    yield self._taken.popleft()
                self._taken.extend(await self._inbox.take_async())
            self._inbox.ended()
        finally:
            self.close()

    async def bursts(self) -> AsyncIterator[list[Piece]]:
        """The pieces as they come: those of a step together."""
        while not self._inbox.is_over or self._inbox.has_pieces:
            pieces = await self._inbox.take_async()
            if pieces:
                yield pieces
        self._inbox.ended()

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """There before the first piece, if they were asked for."""
        return self._inbox.prompt_logprobs

    @property
    def usage(self) -> Usage:
        """There at its end."""
        return self._inbox.ended().usage

    def close(self) -> None:
        """Hear no more of it; if it has not ended, it is cancelled."""
        if not self._client.is_here:
            return  # it is the stream of the process that we were forked from
        self._line.drop(self._inbox)
        if not self._inbox.is_over and not self._is_left:
            self._client.cancel(self.id, self._tenant)

    def leave(self) -> None:
        """Hear no more of it, but let it go on: `Client.resume` takes it up again."""
        self._is_left = True
        self._line.drop(self._inbox)
