"""Owner: the child of a batch's system that ends it when the batch is gone.

A system's processes are detached, so that they outlive the program that started them. A batch's system shall not: a job
that is killed would leave the model in the cluster's memory. So the batch says every second that it is there. One that
is started again in time for the same lines finds the model still loaded, and takes it over.
"""

import threading
from dataclasses import dataclass

from actors.envelope import ExitSignal
from actors.exits import SHUTDOWN, CallFailed
from actors.genserver import GenServer, NoReply, Reply
from actors.node import call, cast, here, now, send_after, whereis
from actors.pid import From
from actors.supervision import ChildSpec
from actors.system_config import ROOT

SILENCE_SECONDS = 20.0
BEAT_SECONDS = 1.0
ID = "batch"
NAME = f"{ROOT}.{ID}"


@dataclass(frozen=True, slots=True)
class Here:
    """The batch is there."""


@dataclass(frozen=True, slots=True)
class Whose:
    """Which batch is it?"""


def owner_of_system() -> str | None:
    """The batch that the system which runs belongs to; None if it belongs to none."""
    try:
        batch: str = call(NAME, Whose())
    except CallFailed:
        return None
    return batch


def owner_spec(batch: str, silence_seconds: float = SILENCE_SECONDS) -> ChildSpec:
    return ChildSpec(ID, ("deploy.jobs.owner:Owner", batch, silence_seconds))


class Owner(GenServer):
    def init(self, batch: str, silence_seconds: float) -> None:
        self.batch = batch
        self.silence_seconds = silence_seconds
        self.heard_at = now()
        send_after(BEAT_SECONDS, "look")

    def handle_call(self, message: object, from_: From) -> Reply:
        return Reply(self.batch)

    def handle_cast(self, message: object) -> NoReply:
        self.heard_at = now()
        return NoReply()

    def handle_info(self, message: object) -> NoReply:
        root = whereis(ROOT)
        if now() - self.heard_at > self.silence_seconds and root is not None:
            here().post(root, ExitSignal(None, SHUTDOWN))  # as from outside: supervisors take no orders from children
        send_after(BEAT_SECONDS, "look")
        return NoReply()


class Heartbeat:
    """Says that the batch is there, from a thread of its own, between entering and leaving."""

    def __enter__(self) -> None:
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def __exit__(self, *trouble: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._is_over.wait(BEAT_SECONDS):
            cast(NAME, Here())
