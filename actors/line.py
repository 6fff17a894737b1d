"""Line: a client program's way to one partition. One thread polls for all streams; a dead partition is waited for.

Everything that a stream needs to go on after a crash is here: its id, and how many pieces it has.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from actors import request_server
from actors.exits import CallFailed, NoProc
from actors.inbox import Inbox, Sleeper, wake
from actors.node import whereis
from actors.pid import Pid
from actors.polls import Part, Poll
from actors.refusals import Unavailable
from actors.request_server import Accepted, Submit
from actors.turnstile import Turnstile

Answer = TypeVar("Answer")
RETRY_SECONDS = 0.03
POLL_SECONDS = 2.0
PARTING_SECONDS = POLL_SECONDS + 1.0  # for the poll that is on its way
FULL_SECONDS = 0.1  # while somebody reads too slowly, who may have caught up by then
CLOSED = "this client was closed"


class Line:
    """Has one reader a request. A request's second reader gets a line of its own, which closes with it."""

    def __init__(self, name: str, patience_seconds: float, tenant: str = "", closes_with_reader: bool = False) -> None:
        self.name = name
        self.patience_seconds = patience_seconds
        self.tenant = tenant
        self.closes_with_reader = closes_with_reader
        self.listener = uuid.uuid4().hex
        self.turnstile = Turnstile()
        self._inboxes: dict[str, Inbox] = {}
        self._polled: set[str] = set()  # of them, those that the partition is known to have
        self._pid: Pid | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def submit(self, message: Submit, inbox: Inbox, patience_seconds: float | None = None) -> Accepted:
        """Have a request accepted, however often its partition dies meanwhile: the id makes it the same request."""
        with self._expecting(inbox):
            return self.ask(lambda pid: request_server.submit(pid, message), patience_seconds)

    async def submit_async(self, message: Submit, inbox: Inbox) -> Accepted:
        """Let go of meanwhile, it may be accepted all the same."""
        with self._expecting(inbox):
            return await self.ask_async(lambda pid: request_server.submit_async(pid, message))

    def follow(self, inbox: Inbox) -> None:
        """Hear of a request that the partition has."""
        with self._changed:
            self._check_open()
            self._inboxes[inbox.id] = inbox
            self._polled.add(inbox.id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"line to {self.name}", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drop(self, inbox: Inbox) -> None:
        with self._changed:
            if self._inboxes.get(inbox.id) is inbox:
                del self._inboxes[inbox.id]
                self._polled.discard(inbox.id)
        if self.closes_with_reader:
            self._end()

    def reading(self, inbox: Inbox) -> "Line":
        """The line for this reader: this one, or another where the request has a reader already."""
        with self._changed:
            if self._inboxes.setdefault(inbox.id, inbox) is inbox:
                return self
        return Line(self.name, self.patience_seconds, self.tenant, closes_with_reader=True)

    def ask(self, question: Callable[[Pid], Answer], patience_seconds: float | None = None) -> Answer:
        """Ask the partition's present process, and its next one if that dies; only for what may be said twice."""
        patience = self.patience_seconds if patience_seconds is None else patience_seconds
        until = time.monotonic() + patience
        while True:
            try:
                return question(self._present())
            except (CallFailed, Unavailable) as trouble:
                self._failed(trouble, until)
            time.sleep(RETRY_SECONDS)

    async def ask_async(self, question: Callable[[Pid], Awaitable[Answer]]) -> Answer:
        until = time.monotonic() + self.patience_seconds
        while True:
            try:
                pid = self._pid
                if pid is None:  # to find it takes time, which is not the event loop's
                    pid = await asyncio.to_thread(self._present)
                return await question(pid)
            except (CallFailed, Unavailable) as trouble:
                self._failed(trouble, until)
            await asyncio.sleep(RETRY_SECONDS)

    def close(self) -> None:
        """Who still waits here is told so, and whoever asks after it. Then the node may go: no poll is on its way.

        An event loop must not wait for that, and need not: its node goes with its process.
        """
        self._end()
        if self._thread is not None and not is_in_loop():
            self._thread.join(PARTING_SECONDS)

    def _end(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._fail_all(Unavailable(CLOSED))

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable(CLOSED)

    @contextmanager
    def _expecting(self, inbox: Inbox) -> Iterator[None]:
        """Around the submission of its request."""
        with self._changed:
            self._check_open()
            self._inboxes[inbox.id] = inbox
        try:
            yield
        except BaseException:
            self.drop(inbox)
            raise
        self.follow(inbox)

    def _failed(self, trouble: Exception, until: float) -> None:
        """It is to be asked again; Unavailable if that was often enough."""
        self._pid = None
        if self._is_closed or time.monotonic() > until:
            raise Unavailable(f"{self.name} does not answer: {trouble}") from None

    def _present(self) -> Pid:
        pid = self._pid
        if pid is None:
            pid = self._pid = whereis(self.name)
        if pid is None:
            raise NoProc(self.name, "noproc")
        return pid

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._polled or self._is_closed)
                if self._is_closed:
                    return
                full = tuple(name for name in self._polled if self._inboxes[name].is_full)
                asked = {name: self._inboxes[name] for name in self._polled.difference(full)}
            self._poll(asked, full)

    def _poll(self, asked: dict[str, Inbox], full: tuple[str, ...]) -> None:
        wants = {name: inbox.wants for name, inbox in asked.items()}
        message = Poll(wants, FULL_SECONDS if full else POLL_SECONDS, self.listener, self.tenant, full)
        try:
            parts = self.ask(lambda pid: request_server.poll(pid, message))
        except Unavailable as refusal:
            self._fail_all(refusal)
            return
        wake(self._told(part, asked) for part in parts)

    def _told(self, part: Part, asked: dict[str, Inbox]) -> Sleeper | None:
        inbox = self._inboxes.get(part.id)
        # Who took a request up again while the poll of its earlier reader was on the way is told by the next one.
        if inbox is None or asked.get(part.id, inbox) is not inbox or not inbox.fits(part):
            return None
        if part.end is not None:
            self.drop(inbox)
        return inbox.feed(part)

    def _fail_all(self, refusal: Unavailable) -> None:
        with self._changed:
            inboxes = list(self._inboxes.values())
            self._inboxes.clear()
            self._polled.clear()
        wake(inbox.fail(refusal) for inbox in inboxes)


def is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
