"""DynamicSupervisor: children that come and go, as many as are asked for, up to `max_children`. Each stands for itself.

Unlike a Supervisor's they have no ids and no order, and are stopped all at once. None survives its supervisor: what an
earlier life of it had started is ended when it comes back, as nobody could say what that was for.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, replace
from typing import ClassVar

from actors.child import Child, ChildInfo
from actors.children import Children, Counts, Refused
from actors.envelope import Down
from actors.exits import KILL, SHUTDOWN, Reason, StartFailed
from actors.genserver import GenServer, NoReply, Reply, Started, Stop
from actors.node import exit, living, me, now, send
from actors.pid import From, Pid, Server
from actors.supervision import BadSpec, ChildSpec, Policy, Restart, RestartWindow, check_specs, decide
from actors.supervisor import ask

log = logging.getLogger(__name__)


def start_child(supervisor: Server, spec: ChildSpec) -> Pid | None:
    """Start one more; None if it was not needed. Refused("max_children") if there are enough. The id is but a label."""
    pid: Pid | None = ask(supervisor, _Start(spec))
    return pid


def terminate_child(supervisor: Server, pid: Pid) -> None:
    ask(supervisor, _Terminate(pid))


def which_children(supervisor: Server) -> list[ChildInfo]:
    infos: list[ChildInfo] = ask(supervisor, _Which())
    return infos


def count_children(supervisor: Server) -> Counts:
    counts: Counts = ask(supervisor, _Count())
    return counts


@dataclass(frozen=True, slots=True)
class _Start:
    spec: ChildSpec


@dataclass(frozen=True, slots=True)
class _Terminate:
    pid: Pid


@dataclass(frozen=True, slots=True)
class _Which: ...


@dataclass(frozen=True, slots=True)
class _Count: ...


@dataclass(frozen=True, slots=True)
class _TryAgain:
    id: str


class DynamicSupervisor(GenServer):
    trap_exit: ClassVar[bool] = True

    def init(self, policy: Policy | None = None, max_children: int | None = None) -> Started:
        self.policy = policy or Policy()
        if self.policy.strategy != "one_for_one":
            raise BadSpec("invalid_strategy", self.policy.strategy)
        if max_children is not None and max_children < 0:
            raise BadSpec("invalid_max_children", max_children)
        self.max_children = max_children
        self.window = RestartWindow(self.policy.max_restarts, self.policy.max_seconds)
        self.children = Children()
        for stranger in living(f"{me().name}."):
            exit(stranger, KILL)
        return None

    def handle_call(self, message: object, from_: From) -> Reply:
        try:
            return Reply(self._answer(message))
        except Refused as refused:
            return Reply(refused)

    def handle_info(self, message: object) -> NoReply | Stop:
        match message:
            case Down(ref, _, reason):
                child = self.children.watched_by(ref)
                return NoReply() if child is None else self._on_death(child, reason)
            case _TryAgain(id):
                child = self.children.find(id)
                return self._restart(child) if child and child.is_restarting else NoReply()
            case _:
                log.warning("%s got an unexpected message: %r", me(), message)
                return NoReply()

    def terminate(self, reason: Reason) -> None:
        # All are told before the first is waited for: their shutdowns pass side by side.
        for child in self.children:
            if child.pid is not None:
                exit(child.pid, KILL if child.spec.patience == "brutal_kill" else SHUTDOWN)
        for child in self.children:
            child.stop()

    def _answer(self, message: object) -> object:
        match message:
            case _Start(spec):
                return self._add(spec)
            case _Terminate(pid):
                child = next((child for child in self.children if child.pid == pid), None)
                if child is None:
                    raise Refused("not_found")
                self.children.remove(child.stop())
            case _Which():
                return [child.info for child in self.children]
            case _Count():
                return self.children.counts()
        return None

    def _add(self, spec: ChildSpec) -> Pid | None:
        # One that is being restarted counts: it will be back.
        if self.max_children is not None and len(self.children) >= self.max_children:
            raise Refused("max_children")
        unique = replace(spec, id=f"{spec.id}-{uuid.uuid4().hex[:12]}")
        try:
            check_specs(self.policy, [unique])
            started = Child(unique, prefix=f"{me().name}.").start()
        except BadSpec as bad:
            raise Refused((bad.error, str(bad))) from None
        except StartFailed as failed:
            raise Refused(failed.reason) from None
        if started.is_running:
            self.children.put(started)
        return started.pid

    def _on_death(self, child: Child, reason: Reason) -> NoReply | Stop:
        if isinstance(decide(self.policy, [child], child.spec.id, reason), Restart):
            return self._restart(child.down(reason))
        self.children.remove(child.down(reason).stop())
        return NoReply()

    def _restart(self, child: Child) -> NoReply | Stop:
        self.window = self.window.record(now())
        if self.window.is_exceeded:
            log.error("%s gives up: %s ended of %s, one time too many", me(), child.spec.id, child.last_reason)
            self.children.remove(child.stop())
            return Stop(SHUTDOWN)
        try:
            started = child.start()
        except StartFailed as failed:
            self.children.put(child.failing(failed.reason))
            send(me(), _TryAgain(child.spec.id))
            return NoReply()
        if started.is_running:
            self.children.put(started)
        else:
            self.children.remove(started)
        return NoReply()
