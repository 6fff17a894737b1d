"""Switchboard: carries messages between the programs of one machine, over sockets that only their user can open.

A process is called by its name. Whoever calls has a cable to it, over which its messages go, in their order, and the
answers come back; at the death of the one who was called all calls that are open fail at once.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path

from actors.channel import Channel

log = logging.getLogger(__name__)
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
NO_ANSWER = 0  # the number of a message that is not a question
NAME_BYTES = 10  # a socket's whole path has at most 103

Answer = Callable[[bytes], object]
Hear = Callable[[bytes, Answer | None], None]
"""What is done with a message; a question comes with the way to answer it."""


class Unplugged(ConnectionError):
    """Who was asked is gone, and did not answer."""


class Switchboard:
    """One a program. One thread of it reads all that comes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._selector = selectors.DefaultSelector()
        self._orders: deque[Callable[[], None]] = deque()
        self._waker, woken = socket.socketpair()
        self._waker.setblocking(False)
        self._register(woken, partial(self._carry_out_orders, woken))
        self._channels: set[Channel] = set()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="switchboard", daemon=True)
        self._thread.start()

    def listen(self, name: str, hear: Hear) -> None:
        """Be called by this name. The socket has it from the moment in which it can be called."""
        listener = socket.socket(socket.AF_UNIX)
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            early = self._path(f"{name} to be")
            listener.bind(str(early))
            listener.listen(128)
            early.rename(self._path(name))
        except OSError:
            listener.close()
            raise
        self._order(partial(self._register, listener, partial(self._accept, listener, hear)))

    def dial(self, name: str) -> Cable | None:
        """A cable to who has this name; None where nobody answers to it on this machine."""
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            connection.connect(str(self._path(name)))
        except OSError:
            connection.close()
            return None
        cable = Cable(connection)
        self._plug_in(cable.channel)
        return cable

    def close(self) -> None:
        """Every call that is open fails."""
        self._order(self._close)
        self._thread.join()

    def _path(self, name: str) -> Path:
        return self._directory / blake2b(name.encode(), digest_size=NAME_BYTES).hexdigest()

    # The one thread

    def _run(self) -> None:
        while not self._is_closed:
            for key, events in self._selector.select():
                key.data(events)
        for channel in self._channels:
            channel.end()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._waker.close()

    def _order(self, order: Callable[[], None]) -> None:
        """Have it done by the one thread, which alone touches the selector."""
        self._orders.append(order)
        with suppress(OSError):  # it is awake, or closed
            self._waker.send(b"\0")

    def _carry_out_orders(self, woken: socket.socket, events: int) -> None:
        with suppress(BlockingIOError):
            woken.recv(4096)
        while self._orders:
            self._orders.popleft()()

    def _accept(self, listener: socket.socket, hear: Hear, events: int) -> None:
        with suppress(OSError):  # who called hung up
            self._plug_in(answering(listener.accept()[0], hear))

    def _register(self, connection: socket.socket, serve: Callable[[int], None]) -> None:
        connection.setblocking(False)
        self._selector.register(connection, READ, serve)

    def _plug_in(self, channel: Channel) -> None:
        channel.when_full = partial(self._order, partial(self._listen_for, channel, READ | WRITE))
        self._order(partial(self._add, channel))

    def _add(self, channel: Channel) -> None:
        self._channels.add(channel)
        self._register(channel.connection, partial(self._serve, channel))

    def _serve(self, channel: Channel, events: int) -> None:
        if events & WRITE and channel.flush():
            self._listen_for(channel, READ)
        if events & READ and not channel.read():
            self._channels.remove(channel)
            self._selector.unregister(channel.connection)
            channel.end()

    def _listen_for(self, channel: Channel, events: int) -> None:
        if channel in self._channels:
            self._selector.modify(channel.connection, events, partial(self._serve, channel))

    def _close(self) -> None:
        self._is_closed = True


class Cable:
    """From a caller to one process, for all of the caller's threads."""

    def __init__(self, connection: socket.socket) -> None:
        self.channel = Channel(connection, self._answered, self._ended)
        self._numbers = count(NO_ANSWER + 1)
        self._open: dict[int, Future[bytes]] = {}

    @property
    def is_unplugged(self) -> bool:
        return self.channel.is_ended

    def tell(self, message: bytes) -> bool:
        """False if it cannot be told this way, and was not."""
        return self.channel.write(NO_ANSWER, message)

    def ask(self, message: bytes) -> Future[bytes] | None:
        """The answer to come, or Unplugged; None if it cannot be asked this way, and was not."""
        number, answer = next(self._numbers), Future[bytes]()
        self._open[number] = answer
        answer.add_done_callback(lambda _: self._open.pop(number, None))  # nobody waits for it any more
        if not self.channel.write(number, message):
            return None
        return answer

    def _answered(self, number: int, message: bytes) -> None:
        answer = self._open.pop(number, None)
        if answer is not None and answer.set_running_or_notify_cancel():
            answer.set_result(message)

    def _ended(self) -> None:
        for answer in list(self._open.values()):
            if answer.set_running_or_notify_cancel():
                answer.set_exception(Unplugged())


def answering(connection: socket.socket, hear: Hear) -> Channel:
    """The end at which a process is called."""

    def heard(number: int, message: bytes) -> None:
        try:
            hear(message, None if number == NO_ANSWER else partial(channel.write, number))
        except Exception:
            log.exception("a message was lost")  # alone: whoever sent it goes on

    channel = Channel(connection, heard, lambda: None)
    return channel
