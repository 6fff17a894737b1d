"""Client: a running system, as a program sees it. Accepted means kept: a crash in between costs time, nothing else.

client = connect()
print(client.generate("Why is the sky blue?", max_tokens=60).text)
for piece in client.stream("Tell me a story.", temperature=0.8):
    print(piece.text, end="")
"""

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from zlib import crc32

from actors import request_server
from actors.asking import Ask, ask_of
from actors.exits import CallFailed
from actors.inbox import Inbox
from actors.line import Line
from actors.node import living
from actors.refusals import Overloaded, Unavailable, UnknownRequest
from actors.request_server import Submit
from actors.request_stats import RequestServerStats
from actors.stream import Stream
from actors.supervisor import count_children
from actors.system_config import ROOT, partition_names
from engine.completion import Completion
from engine.limits import MAX_CHOICES, check_integer, check_name
from engine.refusal import BadRequest, Unsupported
from loaders.prompt import listed

PATIENCE_SECONDS = 60.0  # that a partition may be away before its clients are told so
ABSENCE_SECONDS = 5.0  # that the partitions' supervisor may be away, where other parts of the system live
ANSWER_SECONDS = 2.0
PARTING_SECONDS = 2.0  # that who gives up is held back to say so; a lease says it too


class Asked(NamedTuple):
    """A whole answer that somebody waits for. `id` is its own name for it, if it has one."""

    line: Line
    inbox: Inbox
    id: str | None


class Client:
    """Threads may share one, and a process that is forked may not: the threads that listen stay behind."""

    def __init__(self, num_partitions: int, patience_seconds: float = PATIENCE_SECONDS, tenant: str = "") -> None:
        self.tenant = tenant
        self._process = os.getpid()
        self._all_lines = [Line(name, patience_seconds, tenant) for name in partition_names(num_partitions)]

    # One request

    def generate(self, prompt: Any = None, *, id: str | None = None, **words: Any) -> Completion:
        """The whole answer. Words: `messages`, `adapter`, `priority`, `deadline_seconds`, and those of sampling."""
        asked = Asked(*self._submit(id, self._words(prompt, words), is_whole=True), id)
        try:
            asked.inbox.take()
        except BaseException:
            self._give_up([asked])
            raise
        return asked.inbox.completion()

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
        return self._cancel(self._line(id), id, self.tenant if tenant is None else tenant)

    # Many

    def batched_run(self, prompts: Sequence[Any], **words: Any) -> list[Completion]:
        """The answers to many prompts, in their order; where the system is full, the rest waits its turn."""
        asked: list[Asked] = []
        try:
            for said in [self._words(prompt, words) for prompt in listed(prompts)]:
                asked.append(self._submit_patiently(said))
            for one in asked:
                one.inbox.take()
        except BaseException:
            self._give_up(asked)
            raise
        return [one.inbox.completion() for one in asked]

    # Async twins

    async def generate_async(self, prompt: Any = None, *, id: str | None = None, **words: Any) -> Completion:
        asked = Asked(*await self._submit_async(id, self._words(prompt, words), is_whole=True), id)
        try:
            await asked.inbox.take_async()
        except BaseException:
            await self._give_up_async([asked])
            raise
        return asked.inbox.completion()

    async def stream_async(self, prompt: Any = None, *, id: str | None = None, **words: Any) -> Stream:
        line, inbox = await self._submit_async(id, self._words(prompt, words), is_whole=False)
        return Stream(self, line, inbox, self.tenant)

    async def batched_run_async(self, prompts: Sequence[Any], **words: Any) -> list[Completion]:
        asked: list[Asked] = []
        try:
            for said in [self._words(prompt, words) for prompt in listed(prompts)]:
                asked.append(await self._submit_patiently_async(said))
            for one in asked:
                await one.inbox.take_async()
        except BaseException:
            await self._give_up_async(asked)
            raise
        return [one.inbox.completion() for one in asked]

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

    @property
    def is_here(self) -> bool:
        """Whether this is the process that made it."""
        return os.getpid() == self._process

    def check_process(self) -> None:
        if not self.is_here:
            raise Unsupported(
                "a client does not come along into a forked process, as its threads do not: start that process with "
                "spawn, and connect there"
            )

    # Inside

    @property
    def _lines(self) -> list[Line]:
        self.check_process()
        return self._all_lines

    def _line(self, request_id: str) -> Line:
        check_name("id", request_id, 1)
        return self._lines[crc32(request_id.encode()) % len(self._lines)]

    def _words(self, prompt: Any, words: Mapping[str, Any]) -> dict[str, Any]:
        said = dict(words)
        if isinstance(prompt, Mapping):
            said |= prompt
        elif prompt is not None:
            said["messages" if is_conversation(prompt) else "prompt"] = prompt
        if "tenant" in said:
            raise BadRequest("the tenant is the client's, not a request's: connect as another tenant", "tenant")
        return said | {"tenant": self.tenant}

    def _give_up(self, asked: Iterable[Asked]) -> None:
        """Who asked waits no longer."""
        self._cancel_all(self._let_go(asked))

    async def _give_up_async(self, asked: Iterable[Asked]) -> None:
        nameless = self._let_go(asked)
        if nameless:  # begun at once, and carried out even if this is cancelled too
            await asyncio.get_running_loop().run_in_executor(None, self._cancel_all, nameless)

    def _let_go(self, asked: Iterable[Asked]) -> list[Asked]:
        """Hear no more of them. Whoever gave one an id may ask for it again within its lease; the others are told."""
        for one in asked:
            one.line.drop(one.inbox)
        return [one for one in asked if one.id is None and not one.inbox.is_over]

    def _cancel_all(self, asked: Iterable[Asked], patience_seconds: float | None = PARTING_SECONDS) -> None:
        with suppress(Unavailable):  # their leases end them then
            for line, inbox, _ in asked:
                with suppress(UnknownRequest):
                    self._cancel(line, inbox.id, self.tenant, patience_seconds)

    def _cancel(self, line: Line, id: str, tenant: str, patience_seconds: float | None = None) -> bool:
        return line.ask(lambda pid: request_server.cancel(pid, id, tenant), patience_seconds)

    def _submit(self, id: str | None, words: dict[str, Any], *, is_whole: bool) -> tuple[Line, Inbox]:
        line, inbox, message = self._prepared(id, words, is_whole)
        with self._heeding(message.ask):
            line.submit(message, inbox)
        return line, inbox

    async def _submit_async(self, id: str | None, words: dict[str, Any], *, is_whole: bool) -> tuple[Line, Inbox]:
        line, inbox, message = self._prepared(id, words, is_whole)
        try:
            with self._heeding(message.ask):
                await line.submit_async(message, inbox)
        except asyncio.CancelledError:
            nameless = self._let_go([Asked(line, inbox, id)])
            if nameless:  # it may be accepted all the same; told by a thread, as the event loop may be about to end
                threading.Thread(target=self._cancel_all, args=(nameless, None), daemon=True).start()
            raise
        return line, inbox

    def _prepared(self, id: str | None, words: dict[str, Any], is_whole: bool) -> tuple[Line, Inbox, Submit]:
        ask = ask_of(uuid.uuid4().hex if id is None else id, words)
        turnstile = self._line(ask.id).turnstile
        num_choices = 1 if words.get("n") is None else words["n"]
        check_integer("n", num_choices, 1, MAX_CHOICES)
        inbox = Inbox(ask.id, None if is_whole else (0,) * num_choices)
        if id is None:
            turnstile.check(ask)
        line = self._line(ask.id).reading(inbox)
        return line, inbox, Submit(ask, line.listener, is_whole)

    @contextmanager
    def _heeding(self, ask: Ask) -> Iterator[None]:
        """Who is told within that the system is full, is told so at the turnstile for a while."""
        try:
            yield
        except Overloaded as refusal:
            self._line(ask.id).turnstile.close(ask, refusal)
            raise

    def _submit_patiently(self, words: dict[str, Any]) -> Asked:
        id = words.pop("id", None)
        while True:
            try:
                return Asked(*self._submit(id, words, is_whole=True), id)
            except Overloaded as refusal:
                time.sleep(refusal.retry_after_seconds)

    async def _submit_patiently_async(self, words: dict[str, Any]) -> Asked:
        id = words.pop("id", None)
        while True:
            try:
                return Asked(*await self._submit_async(id, words, is_whole=True), id)
            except Overloaded as refusal:
                await asyncio.sleep(refusal.retry_after_seconds)


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
