"""Host: carries one loop in an actor of its own. Knows no Ray; what it is given makes it vanish.

Threads that only receive, the switchboard's and Ray's event loop, put messages in order, and act on signals at once,
even while a callback is at work. The process's own thread runs the callbacks, one at a time, and touches all that a
server owns.

The end has two moments. First the process is dead to everybody: calls fail, monitors hear the reason, and it can send
nothing more. Then, when its last words were heard, the actor goes.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from queue import Empty, SimpleQueue
from typing import Protocol

from actors.birth import Birth
from actors.envelope import Call, Envelope, GoOn, System
from actors.exits import NOPROC, NotCarried, Reason, StartFailed, reason_of
from actors.loop import Loop
from actors.node import enter
from actors.ordering import Ordering
from actors.pid import From, Pid, Ref
from actors.rest import Rest
from actors.timers import Timers
from actors.transport import Cancel, Node

GAP_SECONDS = 1.0  # how long messages wait for an earlier one that seems lost
FAREWELL_SECONDS = 2.0  # how long last words wait to be heard
FLUSH_SECONDS = 0.05  # for the answers of the last moment to leave the process

Answer = tuple[bool, object]
"""(True, value), or (False, the reason why there is none)."""

Item = tuple[Envelope, From | None]

Packed = bytes
"""A message, or an Answer, as one string: to Ray, several arguments are several things to carry."""

PING, ALIVE, DEAD = b"", b"alive", b"dead"  # what may be said over a socket beside messages

SENDER_BYTES, NUMBER_BYTES = 16, 8
LABEL_BYTES = SENDER_BYTES + NUMBER_BYTES


def label(sender: str, number: int) -> bytes:
    """The outside of a message, readable also where its inside is not: a sender, in hex, and its number there."""
    return bytes.fromhex(sender) + number.to_bytes(NUMBER_BYTES)


def read_label(packed: Packed) -> tuple[str, int]:
    return packed[:SENDER_BYTES].hex(), int.from_bytes(packed[SENDER_BYTES:LABEL_BYTES])


class HostNode(Node, Protocol):
    """A node with one process in it."""

    def listen(self) -> None:
        """Take messages for it from here on."""


class Gone(BaseException):
    """Ends the thread of a process that was ended while it was at work."""


class Host:
    def __init__(
        self,
        pid: Pid,
        birth: Birth,
        make_node: Callable[[Host], HostNode],
        pack: Callable[[object], Packed],
        vanish: Callable[[], None],
    ) -> None:
        self.pid = pid
        self.reason: Reason | None = None  # None: alive
        self.rest = Rest()
        self._pack = pack
        self._vanish = vanish
        self._started: Future[StartFailed | None] = Future()
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self._ordering: Ordering[Item | None] = Ordering()
        self._gaps: set[tuple[str, int]] = set()  # senders, and the numbers that their later messages wait for
        self._timers = Timers()
        self._refs = count(1)
        self._replies: dict[Ref, Future[Answer]] = {}
        self._watchers: list[Future[Reason]] = []
        self._unheard = 0
        self._is_heard = threading.Event()
        self._lock = threading.Lock()
        self._receiving = threading.Lock()
        node = make_node(self)
        enter(node)
        self.loop = Loop(birth, pid, node, self)
        self._thread = threading.Thread(target=self._live, name=str(pid), daemon=True)
        node.listen()
        self._thread.start()

    async def started(self) -> StartFailed | None:
        """How its `init` went."""
        return await asyncio.wrap_future(self._started)

    async def is_alive(self) -> bool:
        return self.reason is None

    async def deliver(self, packed: Packed) -> Packed | None:
        """Take a message that came by Ray; for one that is a question, wait for its answer."""
        self.rest.disturb()
        answer = self._receive(packed)
        return None if answer is None else self._pack_answer(await asyncio.wrap_future(answer))

    def hear(self, packed: Packed, tell: Callable[[Packed], object] | None) -> None:
        """Take a message that came over a socket; one that is a question is told its answer there."""
        if packed == PING and tell is not None:
            tell(ALIVE if self.reason is None else DEAD)
            return
        try:
            answer = self._receive(packed)
        except Exception as error:
            if tell is None:
                raise
            tell(self._pack((False, NotCarried(repr(error)))))
        else:
            if answer is not None and tell is not None:
                answer.add_done_callback(lambda given: tell(self._pack_answer(given.result())))

    async def answer(self, ref: Ref, value: object) -> None:
        """A reply that another process gives in our name."""
        self.rest.disturb()
        self.reply(ref, value)

    async def watch(self) -> Reason:
        """The last words, when it comes to that."""
        with self._lock:
            if self.reason is not None:
                return self.reason
            words: Future[Reason] = Future()
            self._watchers.append(words)
        return await asyncio.wrap_future(words)

    async def heard(self) -> None:
        self._unheard -= 1
        if self._unheard <= 0:
            self._is_heard.set()

    def reply(self, ref: Ref, value: object) -> None:
        reply = self._replies.pop(ref, None)
        if reply is not None and reply.set_running_or_notify_cancel():
            reply.set_result((True, value))

    def enqueue(self, envelope: Envelope, from_: From | None) -> None:
        self._queue.put((envelope, from_))

    def schedule(self, seconds: float, fire: Callable[[], None]) -> Cancel:
        cancel = self._timers.add(time.monotonic() + seconds, fire)
        if threading.current_thread() is not self._thread:
            self._queue.put(None)  # its own thread may be waiting for a later one
        return cancel

    def check(self) -> None:
        """Nothing that a dead process still does may reach others."""
        if self.reason is not None:
            raise Gone

    def die(self, reason: Reason) -> None:
        """Dead to everybody from here on. From any thread, and the first reason counts."""
        with self._lock:
            if self.reason is not None:
                return
            self.reason = reason
            watchers, self._watchers = self._watchers, []
            self._unheard = len(watchers)
        self.rest.disturb()  # whoever hears the last words says so by Ray
        if not watchers:
            self._is_heard.set()
        if not self._started.done():
            self._started.set_result(StartFailed(reason))
        for words in watchers:
            if words.set_running_or_notify_cancel():
                words.set_result(reason)
        for ref in list(self._replies):
            self._fail(ref, reason)
        self._queue.put(None)
        threading.Thread(target=self._leave, daemon=True).start()

    def _live(self) -> None:
        with suppress(Gone):
            try:
                self._work()
            except Exception as error:
                self.die(reason_of(error))
                raise

    def _work(self) -> None:
        failed = self.loop.start()
        if failed is not None:
            self._started.set_result(failed)
            self.die(failed.reason)
            return
        if self.reason is None:
            self._started.set_result(None)
        self.loop.take(GoOn(), None)
        while self.reason is None:
            item = self._next()
            if item is not None:
                self.loop.take(*item)

    def _next(self) -> Item | None:
        while (fire := self._timers.pop(time.monotonic())) is not None:
            fire()
        at = self._timers.next_at
        try:
            return self._queue.get(timeout=None if at is None else max(0.0, at - time.monotonic()))
        except Empty:
            return None

    def _receive(self, packed: Packed) -> Future[Answer] | None:
        """Put it in its place in the line. A question's answer will be there."""
        sender, number = read_label(packed)
        try:
            caller, envelope = pickle.loads(memoryview(packed)[LABEL_BYTES:])
        except Exception:
            # Its class is not to be found here, say. It is lost, but those behind it must not wait for it.
            self._take_in(sender, number, None)
            raise
        if not isinstance(envelope, Call | System):
            self._take_in(sender, number, (envelope, None))
            return None
        from_ = From(self.pid, caller, Ref(next(self._refs)))
        answer = self._expect(from_)
        self._take_in(sender, number, (envelope, from_))
        return answer

    def _pack_answer(self, answer: Answer) -> Packed:
        try:
            return self._pack(answer)
        except Exception as error:
            return self._pack((False, NotCarried(repr(error))))

    def _take_in(self, sender: str, number: int, item: Item | None) -> None:
        with self._receiving:
            self._arrive(self._ordering.arrive(sender, number, item))
            missing = self._ordering.missing(sender)
            if missing is None or (sender, missing) in self._gaps:
                return
            self._gaps.add((sender, missing))
        # not one of the process's own timers: a signal behind the gap is not to wait for a callback
        timer = threading.Timer(GAP_SECONDS, self._skip, (sender, missing))
        timer.daemon = True
        timer.start()

    def _arrive(self, items: list[Item | None]) -> None:
        for item in items:
            if item is not None:
                self.loop.arrive(*item)

    def _expect(self, from_: From) -> Future[Answer]:
        answer: Future[Answer] = Future()
        self._replies[from_.ref] = answer
        if self.reason is not None:
            self._fail(from_.ref, NOPROC)
        return answer

    def _fail(self, ref: Ref, reason: Reason) -> None:
        reply = self._replies.pop(ref, None)
        if reply is not None and reply.set_running_or_notify_cancel():
            reply.set_result((False, reason))

    def _skip(self, sender: str, missing: int) -> None:
        with self._receiving:
            self._gaps.discard((sender, missing))
            self._arrive(self._ordering.skip(sender, missing))

    def _leave(self) -> None:
        self._is_heard.wait(FAREWELL_SECONDS)
        time.sleep(FLUSH_SECONDS)
        self._vanish()
