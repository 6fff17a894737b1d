"""Loop: what an arriving message does to one server. Knows no transport: a host gives it messages and hears of its end.

Both nodes run this same loop, so a server that was tested inline does in Ray what it did there.
"""

from __future__ import annotations

import logging
from collections import deque
from itertools import count
from typing import Any, Protocol

from actors.birth import Birth, class_of
from actors.envelope import Call, Cast, Down, Envelope, ExitSignal, Fired, GoOn, Info, Link, System, Unlink
from actors.exits import NORMAL, Ignored, Reason, StartFailed, is_abnormal, reason_of
from actors.genserver import MISSING, Continue, GenServer, Ignore, NoReply, Reply, Stop
from actors.inspection import Tally, obey
from actors.pid import From, Pid, Ref
from actors.transport import Cancel, Node, Notify

log = logging.getLogger(__name__)


class Host(Protocol):
    """What carries a loop: a queue in front of it, and an end behind it."""

    def enqueue(self, envelope: Envelope, from_: From | None) -> None: ...
    def die(self, reason: Reason) -> None: ...


class Loop:
    """One process from inside. `arrive` may be called from any thread; everything else from the process's own."""

    def __init__(self, birth: Birth, pid: Pid, node: Node, host: Host) -> None:
        self.pid = pid
        self.server: GenServer | None = None
        self.tally = Tally(node.now)
        self.is_suspended = False
        self._birth = birth
        self._node = node
        self._host = host
        self._next: Continue | None = None
        self._postponed: deque[tuple[Envelope, From | None]] = deque()
        self._refs = count(1)
        self._monitors: set[Ref] = set()
        self._timers: dict[Ref, Cancel] = {}
        self._links: set[Pid] = set()

    def start(self) -> StartFailed | None:
        """Make the server and run its `init`."""
        try:
            self.server = class_of(self._birth.server)()
            answer = self.server.init(*self._birth.args)
        except Exception as error:
            return StartFailed(self._crashed("init", error))
        match answer:
            case None:
                return None
            case Continue():
                self._next = answer
                return None
            case Ignore():
                return Ignored()
            case Stop(reason):
                return StartFailed(reason)
            case _:
                return StartFailed(("bad_return_value", repr(answer)))

    def arrive(self, envelope: Envelope, from_: From | None = None) -> None:
        """Signals act on arrival, even on a busy process; messages wait for their turn."""
        match envelope:
            case Link(sender):
                self.link(sender)
            case Unlink(sender):
                self.unlink(sender)
            case ExitSignal() if self.server is None or not self.server.trap_exit:
                if envelope.reason != NORMAL or envelope.sender == self.pid:
                    self._host.die(envelope.reason)
            case _:
                self._host.enqueue(envelope, from_)

    def take(self, envelope: Envelope, from_: From | None) -> None:
        """One message, from beginning to end."""
        if isinstance(envelope, System):
            self._obey(envelope.command, from_)
        elif self.is_suspended:
            self._postponed.append((envelope, from_))
        elif isinstance(envelope, GoOn):
            self._go_on()
        else:
            self._handle(envelope, from_)

    def open_monitor(self) -> tuple[Ref, Notify]:
        ref = Ref(next(self._refs))
        self._monitors.add(ref)
        return ref, lambda pid, reason: self.arrive(Down(ref, pid, reason))

    def close_monitor(self, ref: Ref) -> None:
        self._monitors.discard(ref)

    def start_timer(self, seconds: float, message: object) -> Ref:
        ref = Ref(next(self._refs))
        self._timers[ref] = self._node.schedule(seconds, lambda: self.arrive(Fired(ref, message)))
        return ref

    def cancel_timer(self, ref: Ref) -> bool:
        cancel = self._timers.pop(ref, None)
        if cancel is not None:
            cancel()
        return cancel is not None

    def link(self, pid: Pid) -> None:
        if pid not in self._links:
            self._links.add(pid)
            self._node.watch(pid, self._link_broken)

    def unlink(self, pid: Pid) -> None:
        self._links.discard(pid)

    def end(self, reason: Reason) -> None:
        """The orderly end: the server's last word, then the host's."""
        assert self.server is not None
        try:
            self.server.terminate(reason)
        except Exception as error:
            reason = self._crashed("terminate", error)
        self._next = None
        self._postponed.clear()
        for ref in list(self._timers):
            self.cancel_timer(ref)
        self._host.die(reason)

    @property
    def num_postponed(self) -> int:
        return len(self._postponed)

    def _handle(self, envelope: Envelope, from_: From | None) -> None:
        self.tally.note_in(envelope)
        match envelope:
            case Call(message):
                self._run("handle_call", from_, message, from_)
            case Cast(message):
                self._run("handle_cast", None, message)
            case Info(message):
                self._run("handle_info", None, message)
            case Fired(ref, message):
                # Cancelled after it had fired: the set of timers is the truth, not the mailbox.
                if self._timers.pop(ref, None) is not None:
                    self._run("handle_info", None, message)
            case Down(ref):
                if ref in self._monitors:
                    self._monitors.remove(ref)
                    self._run("handle_info", None, envelope)
            case ExitSignal(sender, reason) if self._is_parent(sender):
                self.end(reason)
            case ExitSignal():
                self._run("handle_info", None, envelope)
        self._go_on()

    def _go_on(self) -> None:
        """Run what the last callback left to `handle_continue`."""
        while self._next is not None:
            value, self._next = self._next.value, None
            self._run("handle_continue", None, value)

    def _run(self, callback: str, from_: From | None, *args: Any) -> None:
        try:
            answer = getattr(self.server, callback)(*args)
        except Exception as error:
            self.end(self._crashed(callback, error))
            return
        match answer:
            case Reply(value, then) if from_ is not None:
                self._answer(from_, value)
                self._next = then
            case NoReply(then):
                self._next = then
            case Stop(reason, value):
                self._stop(reason, value, from_)
            case _:
                log.error("%s: %s returned %r", self.pid, callback, answer)
                self.end(("bad_return_value", repr(answer)))

    def _stop(self, reason: Reason, value: object, from_: From | None) -> None:
        # Answered before the end is announced: what answers after it would be dropped.
        if from_ is not None and value is not MISSING:
            self._answer(from_, value)
        self.end(reason)

    def _answer(self, from_: From, value: object) -> None:
        self.tally.note_reply(value)
        self._node.answer(from_, value)

    def _obey(self, command: object, from_: From | None) -> None:
        value = obey(command, self)
        if from_ is not None:
            self._node.answer(from_, value)
        while self._postponed and not self.is_suspended:
            self._handle(*self._postponed.popleft())

    def _is_parent(self, sender: Pid | None) -> bool:
        # By name, and not by pid: a restarted supervisor is still the parent of the children it adopted.
        parent = self._birth.parent
        return (sender and sender.name) == (parent and parent.name)

    def _link_broken(self, pid: Pid, reason: Reason) -> None:
        if pid in self._links:
            self._links.discard(pid)
            self.arrive(ExitSignal(pid, reason))

    def _crashed(self, where: str, error: Exception) -> Reason:
        reason = reason_of(error)
        if is_abnormal(reason):
            log.error("%s crashed in %s", self.pid, where, exc_info=error)
        return reason
