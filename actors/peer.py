"""Peer: another process, as seen from one program: its actor, and the number of our next message to it."""

import threading
from collections.abc import Callable
from typing import Any

from actors.envelope import Envelope
from actors.host import Packed, label
from actors.pid import Pid


class Peer:
    def __init__(self, actor: Any, sender: str, pack: Callable[[object], Packed]) -> None:
        self.actor = actor
        self._sender = sender
        self._pack = pack
        self._next_number = 0
        self._lock = threading.Lock()

    def deliver(self, caller: Pid | None, envelope: Envelope) -> Any:
        """Send it; what comes back is Ray's promise of the answer."""
        # Numbered and sent in one go, and the number kept if sending fails: a gap would hold up the next message.
        with self._lock:
            packed = label(self._sender, self._next_number) + self._pack((caller, envelope))
            delivered = self.actor.deliver.remote(packed)
            self._next_number += 1
        return delivered
