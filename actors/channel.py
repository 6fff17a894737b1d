"""Channel: one local socket that carries numbered messages both ways. Written to by any thread, read by one.

Writing never waits: what the other end does not take at once is kept, and sent when it does.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterator
from struct import Struct
from threading import Lock

HEADER = Struct("!QQ")  # the message's number, its length
READ_BYTES = 1 << 18

Heard = Callable[[int, bytes], None]


class Frames:
    """Cuts a stream of bytes into the messages that were put into it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            number, length = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            message = bytes(memoryview(self._buffer)[HEADER.size : end])
            del self._buffer[:end]
            yield number, message


class Channel:
    """`heard` is told of each message, `ended` once, both by who reads."""

    def __init__(self, connection: socket.socket, heard: Heard, ended: Callable[[], None]) -> None:
        connection.setblocking(False)  # before it is read, as it may be written to at once
        self.connection = connection
        self.is_ended = False
        self.when_full: Callable[[], None] = lambda: None  # somebody is to call `flush` when the other end has room
        self._heard = heard
        self._ended = ended
        self._frames = Frames()
        self._kept: deque[memoryview] = deque()
        self._lock = Lock()

    def write(self, number: int, message: bytes) -> bool:
        """False where nobody is at the other end any more, and nothing was sent."""
        frame = HEADER.pack(number, len(message)) + message
        with self._lock:
            if self.is_ended:
                return False
            if self._kept:
                self._kept.append(memoryview(frame))
                return True
            try:
                num_sent = self.connection.send(frame)
            except BlockingIOError:
                num_sent = 0
            except OSError:
                return False
            if num_sent < len(frame):
                self._kept.append(memoryview(frame)[num_sent:])
                self.when_full()
        return True

    def flush(self) -> bool:
        """Send of what was kept as much as is taken; True when all of it is gone."""
        with self._lock:
            try:
                while self._kept:
                    num_sent = self.connection.send(self._kept[0])
                    if num_sent < len(self._kept[0]):
                        self._kept[0] = self._kept[0][num_sent:]
                        return False
                    self._kept.popleft()
            except BlockingIOError:
                return False
            except OSError:
                self._kept.clear()  # the reader finds out
            return True

    def read(self) -> bool:
        """Hear what has come; False at the end."""
        try:
            data = self.connection.recv(READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        for number, message in self._frames.feed(data):
            self._heard(number, message)
        return bool(data)

    def end(self) -> None:
        with self._lock:
            if self.is_ended:
                return
            self.is_ended = True
            self._kept.clear()
            self.connection.close()
        self._ended()
