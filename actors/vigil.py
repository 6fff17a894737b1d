"""Vigil: tells as soon as the Ray that this program has started has died.

A call that comes too late waits a minute for Ray's control store, within Ray's library, which then ends the program.
Who signals all processes of a service at once, as service managers do, brings that about each time.
"""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

LOOK_SECONDS = 0.25
LAST_LOOK_SECONDS = 0.5


class Vigil:
    """Over Ray's node, while its block lasts: `act` is called, on another thread or at the block's end, if it dies."""

    def __init__(self, node: Any, act: Callable[[], None]) -> None:
        self._raylet = next((info.process for info in node.all_processes.get("raylet", ())), None)  # if started here
        self._address = node.gcs_address
        self._act = act
        self._is_over = threading.Event()

    def __enter__(self) -> None:
        if self._raylet is not None:
            threading.Thread(target=self._look, name="vigil", daemon=True).start()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """What ends the block early may be how Ray's death is felt first, and to tell of it is a call on Ray too."""
        self._is_over.set()
        is_felt = kind is not None and self._raylet is not None
        until = time.monotonic() + (LAST_LOOK_SECONDS if is_felt else 0.0)
        while not self._has_died():
            if time.monotonic() >= until:
                return
            time.sleep(LOOK_SECONDS)
        self._act()

    def _look(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            if self._has_died():
                self._act()
                return

    def _has_died(self) -> bool:
        return self._raylet is not None and (self._raylet.poll() is not None or is_deserted(self._address))


def is_deserted(address: str) -> bool:
    """Whether nobody listens there. A control store that is told to end refuses at once, and takes seconds to do so."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 1.0).close()
    except OSError as trouble:  # any other says nothing about who listens
        return isinstance(trouble, ConnectionRefusedError)
    return False
