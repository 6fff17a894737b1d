"""Vigil: tells as soon as the Ray that this program has started has died.

A call that comes too late waits a minute for Ray's control store, within Ray's library, which then ends the program.
Who signals all processes of a service at once, as service managers do, brings that about each time.
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LOOK_SECONDS = 0.25


class Vigil:
    """Over Ray's node, while its block lasts: `act` is called, on another thread, if it dies."""

    def __init__(self, node: Any, act: Callable[[], None]) -> None:
        self._node = node
        self._act = act
        self._is_over = threading.Event()

    def __enter__(self) -> None:
        if self._node.all_processes:  # it was started here
            threading.Thread(target=self._look, name="vigil", daemon=True).start()

    def __exit__(self, *trouble: object) -> None:
        self._is_over.set()

    def _look(self) -> None:
        (raylet,) = self._node.all_processes["raylet"]
        while not self._is_over.wait(LOOK_SECONDS):
            if raylet.process.poll() is not None or is_deserted(self._node.gcs_address):
                self._act()
                return


def is_deserted(address: str) -> bool:
    """Whether nobody listens there. A control store that is told to end refuses at once, and takes seconds to do so."""
    host, _, port = address.rpartition(":")
    try:
        with suppress(TimeoutError):
            socket.create_connection((host.strip("[]"), int(port)), 1.0).close()
    except ConnectionRefusedError:
        return True
    return False
