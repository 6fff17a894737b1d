"""Vigil: tells as soon as the Ray that this program is on has died.

A call that comes too late waits a minute for Ray's control store, within Ray's library, which then ends the program
with a word of its own. Who signals all processes of a service at once, as service managers do, brings that about each
time; and who only uses a system is in the middle of a call whenever that one is ended.
"""

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import ip_address

LOOK_SECONDS = 0.25
LAST_LOOK_SECONDS = 0.5
TRUST_SECONDS = 10.0  # in a connection: a machine that loses its power does not close it
NEAR_SECONDS, FAR_SECONDS = 3.0, 30.0  # for which nobody listens where a Ray is that somebody else has started


class Vigil:
    """Over the Ray at an address, while its block lasts: `act` is called, on another thread or at its end, if Ray dies.

    Of one that was started here `raylet` is a part, and the first sign of death is believed. To another one its keeper
    may give a new control store.
    """

    def __init__(self, address: str, act: Callable[[], None], raylet: "subprocess.Popen[bytes] | None" = None) -> None:
        self._address = address
        self._act = act
        self._raylet = raylet
        self._patience = 0.0 if raylet is not None else NEAR_SECONDS if is_near(address) else FAR_SECONDS
        self._deserted_at: float | None = None
        self._is_over = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._look, name="vigil", daemon=True).start()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """What ends the block early may be how Ray's death is felt first, and to tell of it is a call on Ray too."""
        self._is_over.set()
        if kind is None and self._raylet is None:
            return  # all was done
        until = time.monotonic() + (0.0 if kind is None else LAST_LOOK_SECONDS)
        with closing(Post(self._address)) as post:
            while not self._has_died(post):
                if time.monotonic() >= until and self._deserted_at is None:
                    return
                time.sleep(LOOK_SECONDS)
        self._act()

    def _look(self) -> None:
        with closing(Post(self._address)) as post:
            while not self._is_over.wait(LOOK_SECONDS):
                if self._has_died(post):
                    self._act()
                    return

    def _has_died(self, post: "Post") -> bool:
        if self._raylet is not None and self._raylet.poll() is not None:
            return True
        if not post.is_deserted():
            self._deserted_at = None
            return False
        if self._deserted_at is None:
            self._deserted_at = time.monotonic()
        return time.monotonic() - self._deserted_at >= self._patience


class Post:
    """Where a Ray's control store listens. One that is told to end refuses at once, and takes seconds to do so.

    Its end closes a connection that was open to it, so to look at one costs neither side anything.
    """

    def __init__(self, address: str) -> None:
        self._place = host_of(address), int(address.rpartition(":")[2])
        self._kept: socket.socket | None = None
        self._made_at = 0.0

    def is_deserted(self) -> bool:
        is_fresh = time.monotonic() - self._made_at < TRUST_SECONDS
        if self._kept is not None and is_fresh and is_open(self._kept):
            return False
        try:
            fresh = socket.create_connection(self._place, 1.0)
        except OSError as trouble:  # any other says nothing about who listens
            return isinstance(trouble, ConnectionRefusedError)
        self.close()
        fresh.setblocking(False)
        self._kept, self._made_at = fresh, time.monotonic()
        return False

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
        self._kept = None


def is_open(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass  # a greeting, or the like
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def is_near(address: str) -> bool:
    """Whether only this machine can reach it."""
    host = host_of(address)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_of(address: str) -> str:
    return address.rpartition(":")[0].rpartition("://")[2].strip("[]")
