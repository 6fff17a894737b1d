"""Peer: another process, as seen from one program: the ways to it, and the number of our next message to it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from actors.envelope import Envelope
from actors.host import ALIVE, PING, Packed, label
from actors.pid import Pid
from actors.switchboard import Cable, Unplugged


class Peer:
    """By socket where that process is on this machine and has been born, and else by Ray.

    Messages bear numbers, by which the other end puts them in order, as one of Ray's may be late.
    """

    def __init__(
        self, actor: Any, sender: str, pack: Callable[[object], Packed], dial: Callable[[], Cable | None]
    ) -> None:
        self.actor = actor
        self._sender = sender
        self._pack = pack
        self._dial = dial
        self._cable: Cable | None = None
        self._next_number = 0
        self._lock = threading.Lock()

    def tell(self, caller: Pid | None, envelope: Envelope) -> None:
        # Numbered and sent in one go, and the number kept if packing fails: a gap would hold up the next message.
        with self._lock:
            packed = self._packed(caller, envelope)
            if not (cable := self._present_cable()) or not cable.tell(packed):
                self.actor.deliver.remote(packed)
            self._next_number += 1

    def ask(self, caller: Pid | None, envelope: Envelope) -> Future[Packed]:
        """The answer to come."""
        with self._lock:
            packed = self._packed(caller, envelope)
            cable = self._present_cable()
            answer = cable.ask(packed) if cable else None
            if answer is None:
                answer = self.actor.deliver.remote(packed).future()
            self._next_number += 1
        return answer

    def says_it_lives(self, timeout: float) -> bool | None:
        """Asked out of turn, by socket alone; None where it cannot be. Raises TimeoutError."""
        with self._lock:
            cable = self._present_cable()
        said = cable.ask(PING) if cable else None
        try:
            return None if said is None else said.result(timeout) == ALIVE
        except Unplugged:
            return None
        finally:
            if said is not None:
                said.cancel()  # nobody waits for it any more

    def _packed(self, caller: Pid | None, envelope: Envelope) -> Packed:
        return label(self._sender, self._next_number) + self._pack((caller, envelope))

    def _present_cable(self) -> Cable | None:
        if self._cable is None or self._cable.is_unplugged:
            self._cable = self._dial()
        return self._cable
