"""Client: a running system, as a program sees it. Accepted means kept: a crash in between costs time, nothing else.

client = connect()
print(client.generate("Why is the sky blue?", max_tokens=60).text)
for piece in client.stream("Tell me a story.", temperature=0.8):
    print(piece.text, end="")
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from zlib import crc32

from actors import request_server
from actors.asking import ask_of
from actors.exits import CallFailed
from actors.inbox import Inbox
from actors.line import Line
from actors.node import living
from actors.refusals import Overloaded, Unavailable
from actors.request_server import Submit
from actors.request_stats import RequestServerStats
from actors.supervisor import count_children
from actors.system_config import ROOT, partition_names
from engine.completion import Completion, Piece, Usage
from engine.event import TokenLogprob
from engine.refusal import BadRequest

PATIENCE_SECONDS = 60.0  # that a partition may be away before its clients are told so
ABSENCE_SECONDS = 5.0  # that the partitions' supervisor may be away, where other parts of the system live
ANSWER_SECONDS = 2.0


class Stream:
    """The pieces of one request. Iterate over it, or over it asynchronously; closing it early cancels the request."""

    def __init__(self, client: "Client", line: Line, inbox: Inbox, tenant: str) -> None:
        self.id = inbox.id
        self._client = client
        self._line = line
        self._inbox = inbox
        self._tenant = tenant
        self._is_left = False

    def __iter__(self) -> Iterator[Piece]:
        try:
            while not self._inbox.is_over or self._inbox.has_pieces:
                yield from self._inbox.take()
            self._inbox.ended()
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            while not self._inbox.is_over or self._inbox.has_pieces:
                for piece in await self._inbox.take_async():
                    yield piece
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
        self._line.drop(self._inbox)
        if not self._inbox.is_over and not self._is_left:
            self._client.cancel(self.id, self._tenant)

    def leave(self) -> None:
        """Hear no more of it, but let it go on: `Client.resume` takes it up again."""
        self._is_left = True
        self._line.drop(self._inbox)


class Client:
    """Threads may share one."""

    def __init__(self, num_partitions: int, patience_seconds: float = PATIENCE_SECONDS, tenant: str = "") -> None:
        self.tenant = tenant
        self._lines = [Line(name, patience_seconds, tenant) for name in partition_names(num_partitions)]

    # One request

    def generate(self, prompt: Any = None, *, id: str | None = None, **words: Any) -> Completion:
        """The whole answer. Words: `messages`, `adapter`, `priority`, `deadline_seconds`, and those of sampling."""
        _, inbox = self._submit(id, self._words(prompt, words), is_whole=True)
        inbox.take()
        return inbox.completion()

    def stream(self, prompt: Any = None, *, id: str | None = None, **words: Any) -> Stream:
        """The answer piece by piece. It is accepted when this returns."""
        line, inbox = self._submit(id, self._words(prompt, words), is_whole=False)
        return Stream(self, line, inbox, self.tenant)

    def resume(self, id: str, had: int | Sequence[int] = 0) -> Stream:
        """Take up a stream again, behind the pieces that were had of it (of each choice, where there are several)."""
        inbox = Inbox(id, (had,) if isinstance(had, int) else tuple(had))
        line = self._line(id).reading(inbox)
        line.follow(inbox)
        return Stream(self, line, inbox, self.tenant)

    def cancel(self, id: str, tenant: str | None = None) -> bool:
        """End a request; False if it had ended already."""
        owner = self.tenant if tenant is None else tenant
        return self._line(id).ask(lambda pid: request_server.cancel(pid, id, owner))

    # Many

    def batched_run(self, prompts: Sequence[Any], **words: Any) -> list[Completion]:
        """The answers to many prompts, in their order; where the system is full, the rest waits its turn."""
        inboxes = [self._submit_patiently(self._words(prompt, words)) for prompt in prompts]
        for inbox in inboxes:
            inbox.take()
        return [inbox.completion() for inbox in inboxes]

    # Async twins

    async def generate_async(self, prompt: Any = None, *, id: str | None = None, **words: Any) -> Completion:
        line, inbox = await self._submit_async(id, self._words(prompt, words), is_whole=True)
        try:
            await inbox.take_async()
        finally:
            line.drop(inbox)
        return inbox.completion()

    async def stream_async(self, prompt: Any = None, *, id: str | None = None, **words: Any) -> Stream:
        line, inbox = await self._submit_async(id, self._words(prompt, words), is_whole=False)
        return Stream(self, line, inbox, self.tenant)

    async def batched_run_async(self, prompts: Sequence[Any], **words: Any) -> list[Completion]:
        return await asyncio.to_thread(self.batched_run, prompts, **words)

    async def cancel_async(self, id: str) -> bool:
        return await asyncio.to_thread(self.cancel, id)

    # The system

    def stats(self) -> list[RequestServerStats]:
        """One record a partition."""
        return [line.ask(lambda pid: request_server.stats(pid)) for line in self._lines]

    def is_ready(self) -> bool:
        """Whether every partition has a model server to send to."""
        try:
            return all(line.ask(lambda pid: request_server.stats(pid), 0.0).active_models for line in self._lines)
        except Unavailable:
            return False

    def drain(self, timeout: float | None = None) -> bool:
        """Accept nothing new, and wait for what was accepted; False if some of it is left after `timeout`."""
        for line in self._lines:
            line.ask(lambda pid: request_server.drain(pid))
        until = None if timeout is None else time.monotonic() + timeout
        while any(found.num_living for found in self.stats()):
            if until is not None and time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        for line in self._lines:
            line.close()

    # Inside

    def _line(self, request_id: str) -> Line:
        return self._lines[crc32(request_id.encode("utf-8", "surrogatepass")) % len(self._lines)]

    def _words(self, prompt: Any, words: dict[str, Any]) -> dict[str, Any]:
        words = {"tenant": self.tenant, **words}
        if isinstance(prompt, dict):
            return words | prompt
        if prompt is not None:
            words["messages" if is_conversation(prompt) else "prompt"] = prompt
        return words

    def _submit(self, id: str | None, words: dict[str, Any], *, is_whole: bool) -> tuple[Line, Inbox]:
        ask = ask_of(uuid.uuid4().hex if id is None else id, words)
        num_choices = words.get("n") or 1
        if not isinstance(ask.id, str) or not isinstance(num_choices, int) or not 0 < num_choices <= 4096:
            raise BadRequest("id must be a string and n a small number", "id")
        inbox = Inbox(ask.id, None if is_whole else (0,) * num_choices)
        turnstile = self._line(ask.id).turnstile
        if id is None:
            turnstile.check(ask)
        line = self._line(ask.id).reading(inbox)
        try:
            line.submit(Submit(ask, line.listener, is_whole), inbox)
        except Overloaded as refusal:
            turnstile.close(ask, refusal)
            raise
        return line, inbox

    async def _submit_async(self, id: str | None, words: dict[str, Any], *, is_whole: bool) -> tuple[Line, Inbox]:
        """Who asked may be gone when it is accepted: then nobody listens, and its lease ends it."""
        submission = asyncio.ensure_future(asyncio.to_thread(self._submit, id, words, is_whole=is_whole))
        try:
            return await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(hear_no_more)
            raise

    def _submit_patiently(self, words: dict[str, Any]) -> Inbox:
        request_id = words.pop("id", None) or uuid.uuid4().hex
        while True:
            try:
                return self._submit(request_id, words, is_whole=True)[1]
            except Overloaded as refusal:
                time.sleep(refusal.retry_after_seconds)


def hear_no_more(submission: "asyncio.Future[tuple[Line, Inbox]]") -> None:
    if not submission.cancelled() and submission.exception() is None:
        line, inbox = submission.result()
        line.drop(inbox)


def is_conversation(prompt: Any) -> bool:
    return isinstance(prompt, list | tuple) and bool(prompt) and isinstance(prompt[0], dict)


def find_client(patience_seconds: float = PATIENCE_SECONDS, tenant: str = "") -> Client:
    """A client of the system that runs here. Raises Unavailable if there is none."""
    return Client(num_partitions(), patience_seconds, tenant)


def num_partitions() -> int:
    """How many there are meant to be: one that is dead just now counts, or ids would be looked for elsewhere."""
    until = time.monotonic() + ABSENCE_SECONDS
    while True:
        try:
            return count_children(f"{ROOT}.requests", ANSWER_SECONDS).specs
        except CallFailed:  # it is dead just now, or there is none
            if time.monotonic() > until or not living(f"{ROOT}."):
                raise Unavailable("no system is running here") from None
        time.sleep(0.05)
