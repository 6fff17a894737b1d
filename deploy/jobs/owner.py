"""Owner: the child of a batch's system that ends it when the batch is gone.

A system's processes are detached, so that they outlive the program that started them. A batch's system shall not: a job
that is killed would leave the model in the cluster's memory. So the batch says every second that it is there. One that
is started again in time for the same lines finds the model still loaded, and takes it over; any other waits until the
system that nobody speaks for any more is gone.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from actors.envelope import ExitSignal
from actors.exits import SHUTDOWN, CallFailed
from actors.genserver import GenServer, NoReply, Reply
from actors.node import call, here, now, send_after, whereis
from actors.pid import From, Pid
from actors.refusals import Unavailable
from actors.supervision import ChildSpec
from actors.system_config import ROOT

SILENCE_SECONDS = 20.0
BEAT_SECONDS = 1.0
LOOK_SECONDS = 0.2  # at somebody else's system, which may be about to end
ID = "batch"
NAME = f"{ROOT}.{ID}"


@dataclass(frozen=True, slots=True)
class Here:
    """The batch is there."""


@dataclass(frozen=True, slots=True)
class Whose:
    """Which batch is it?"""


@dataclass(frozen=True, slots=True)
class Owned:
    """The batch that a system belongs to, and how often that has said that it is there."""

    batch: str
    num_beats: int


def owner_of_system() -> Owned | None:
    """Of the system that runs; None if it belongs to no batch."""
    try:
        owned: Owned = call(NAME, Whose())
    except CallFailed:
        return None
    return owned


def finds_its_system(batch: str, wait: Callable[[float], None] = time.sleep) -> bool:
    """Whether one runs that an earlier start of this batch left behind. Unavailable if somebody else's is in use.

    One that a batch which was killed has left behind soon ends, and is waited for; its silence gives it away.
    """
    first, until = None, now() + 2 * SILENCE_SECONDS
    while whereis(ROOT) is not None:
        owned = owner_of_system()
        if owned is not None and owned.batch == batch:
            return True
        first = first or owned
        is_in_use = first is None or (owned is not None and owned != first)
        if is_in_use or now() > until:
            raise Unavailable("a system runs here already: use it with --connect, or end it with `genserve stop`")
        wait(LOOK_SECONDS)
    return False


def owner_spec(batch: str, silence_seconds: float = SILENCE_SECONDS) -> ChildSpec:
    return ChildSpec(ID, ("deploy.jobs.owner:Owner", batch, silence_seconds))


class Owner(GenServer):
    def init(self, batch: str, silence_seconds: float) -> None:
        self.batch = batch
        self.silence_seconds = silence_seconds
        self.heard_at = now()
        self.num_beats = 0
        send_after(BEAT_SECONDS, "look")

    def handle_call(self, message: object, from_: From) -> Reply:
        if isinstance(message, Here):
            self.heard_at = now()
            self.num_beats += 1
        return Reply(Owned(self.batch, self.num_beats))

    def handle_info(self, message: object) -> NoReply:
        if now() - self.heard_at > self.silence_seconds and (root := whereis(ROOT)) is not None:
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
        owner: Pid | None = None
        while not self._is_over.wait(BEAT_SECONDS):
            owner = say_here(owner)


def say_here(owner: Pid | None) -> Pid | None:
    """To the owner as it was last found, as a name is dear to look up; whom to say it to the next time."""
    owner = owner or whereis(NAME)
    if owner is not None:
        try:
            call(owner, Here(), BEAT_SECONDS)
        except CallFailed:  # it died, and its next life is found by name
            return None
    return owner
