"""Supervisor: starts its children in order, restarts those that die, stops them in reverse order.

What is to be done is decided in `actors/supervision.py`; this carries it out.

    specs = [Registry.child_spec(), ModelServer.child_spec(config)]
    root = spawn(Supervisor, Policy(strategy="rest_for_one"), specs, name="root")

A child's process is named after its supervisor and its id, here "root.Registry". A supervisor that was killed comes
back, finds who still lives under those names, and takes them over instead of starting them again. That is where this
one leaves Erlang's, whose children die with it: here a loaded model outlives the death of its supervisor.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from actors.child import Child, ChildInfo
from actors.children import Children, Counts, Refused
from actors.envelope import Down
from actors.exits import KILL, SHUTDOWN, Reason, StartFailed
from actors.genserver import GenServer, NoReply, Reply, Started, Stop
from actors.node import call, exit, living, me, now, send
from actors.pid import From, Pid, Server
from actors.supervision import (
    BadSpec,
    ChildSpec,
    Policy,
    Restart,
    RestartWindow,
    Retire,
    ShutDown,
    check_specs,
    decide,
    restart_of,
)

log = logging.getLogger(__name__)


def start_child(supervisor: Server, spec: ChildSpec) -> Pid | None:
    """Add a child as the last in the order, and start it; None if it was not needed."""
    pid: Pid | None = ask(supervisor, _Start(spec))
    return pid


def terminate_child(supervisor: Server, id: str) -> None:
    """Stop a child and keep its spec, so that `restart_child` can bring it back; a temporary one is forgotten."""
    ask(supervisor, _Terminate(id))


def restart_child(supervisor: Server, id: str) -> Pid | None:
    """Start a child that is down."""
    pid: Pid | None = ask(supervisor, _Restart(id))
    return pid


def delete_child(supervisor: Server, id: str) -> None:
    """Forget a child that is down."""
    ask(supervisor, _Delete(id))


def which_children(supervisor: Server, timeout: float | None = None) -> list[ChildInfo]:
    """In start order."""
    infos: list[ChildInfo] = ask(supervisor, _Which(), timeout)
    return infos


def count_children(supervisor: Server, timeout: float | None = None) -> Counts:
    counts: Counts = ask(supervisor, _Count(), timeout)
    return counts


def child_spec_of(supervisor: Server, id: str, timeout: float | None = None) -> ChildSpec:
    spec: ChildSpec = ask(supervisor, _SpecOf(id), timeout)
    return spec


def ask(supervisor: Server, message: object, timeout: float | None = None) -> Any:
    """A call whose answer may be a no. No timeout: to start or stop a child takes as long as the child does."""
    answer = call(supervisor, message, timeout)
    if isinstance(answer, Refused):
        raise answer
    return answer


@dataclass(frozen=True, slots=True)
class _Start:
    spec: ChildSpec


@dataclass(frozen=True, slots=True)
class _Terminate:
    id: str


@dataclass(frozen=True, slots=True)
class _Restart:
    id: str


@dataclass(frozen=True, slots=True)
class _Delete:
    id: str


@dataclass(frozen=True, slots=True)
class _SpecOf:
    id: str


@dataclass(frozen=True, slots=True)
class _Which: ...


@dataclass(frozen=True, slots=True)
class _Count: ...


@dataclass(frozen=True, slots=True)
class _TryAgain:
    """To oneself, after a failed restart. As a message, so that calls and a shutdown get in between two tries."""

    id: str


class Supervisor(GenServer):
    trap_exit: ClassVar[bool] = True

    def init(self, policy: Policy, specs: Sequence[ChildSpec] = ()) -> Started:
        check_specs(policy, specs)
        self.policy = policy
        self.window = RestartWindow(policy.max_restarts, policy.max_seconds)
        self.children = Children(_child(spec) for spec in specs)
        self._end_strangers()
        failed = self._start_all([spec.id for spec in specs])
        if failed is None:
            return None
        self.terminate(SHUTDOWN)
        return Stop(("shutdown", ("failed_to_start_child", *failed)))

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
                # Whoever stopped, started or deleted it meanwhile has settled the matter.
                return self._restart(child) if child and child.is_restarting else NoReply()
            case _:
                log.warning("%s got an unexpected message: %r", me(), message)
                return NoReply()

    def terminate(self, reason: Reason) -> None:
        for child in reversed(list(self.children)):
            self.children.put(child.stop())

    def _answer(self, message: object) -> object:
        match message:
            case _Start(spec):
                return self._add(spec)
            case _Terminate(id):
                self.children.put_down(self.children.present(id).stop())
            case _Restart(id):
                return self._start(self.children.idle(id))
            case _Delete(id):
                self.children.remove(self.children.idle(id))
            case _SpecOf(id):
                return self.children.present(id).spec
            case _Which():
                return [child.info for child in self.children]
            case _Count():
                return self.children.counts()
        return None

    def _on_death(self, child: Child, reason: Reason) -> NoReply | Stop:
        decision = decide(self.policy, list(self.children), child.spec.id, reason)
        child = child.down(reason)
        match decision:
            case Restart():
                self.children.put(child)
                return self._restart(child)
            case Retire():
                self.children.put_down(child.stop())
                return NoReply()
            case ShutDown():
                self.children.put_down(child.stop())
                return Stop(SHUTDOWN)

    def _restart(self, child: Child) -> NoReply | Stop:
        self.window = self.window.record(now())
        if self.window.is_exceeded:
            log.error("%s gives up: %s ended of %s, one time too many", me(), child.spec.id, child.last_reason)
            self.children.remove(child.stop())
            return Stop(SHUTDOWN)
        plan = restart_of(self.policy, list(self.children), child.spec.id)
        for id in plan.stop:
            self.children.put_down(self.children.present(id).stop())
        failed = self._start_all(plan.start)
        if failed is not None:
            self._try_again(failed[0])
        return NoReply()

    def _try_again(self, id: str) -> None:
        send(me(), _TryAgain(id))

    def _start_all(self, ids: Sequence[str]) -> tuple[str, Reason] | None:
        """One after the other, up to the first that does not start: its id and the reason."""
        for id in ids:
            failed = self._finish(self.children.present(id).begin())
            if failed is not None:
                return failed
        return None

    def _finish(self, child: Child) -> tuple[str, Reason] | None:
        """Its id and the reason, where it does not start."""
        try:
            self._put_started(child.finish())
        except StartFailed as failed:
            log.error("%s cannot start %s: %s", me(), child.spec.id, failed.reason)
            self.children.put(child.failing(failed.reason))
            return child.spec.id, failed.reason
        return None

    def _add(self, spec: ChildSpec) -> Pid | None:
        try:
            check_specs(self.policy, [spec])
        except BadSpec as bad:
            raise Refused((bad.error, str(bad))) from None
        present = self.children.find(spec.id)
        if present is not None:
            raise Refused("already_present" if present.is_down else ("already_started", present.pid))
        return self._start(_child(spec))

    def _start(self, child: Child) -> Pid | None:
        try:
            started = child.start()
        except StartFailed as failed:
            raise Refused(failed.reason) from None
        self._put_started(started)
        return started.pid

    def _put_started(self, child: Child) -> None:
        self.children.put(child)
        if not child.is_running:
            self.children.put_down(child)  # it was not needed

    def _end_strangers(self) -> None:
        """What an earlier life of this supervisor was given later on is not in its specs, and nobody waits for it."""
        ours = tuple(f"{child.name}." for child in self.children)
        for pid in living(f"{me().name}."):
            if not f"{pid.name}.".startswith(ours):
                exit(pid, KILL)


def _child(spec: ChildSpec) -> Child:
    return Child(spec, name=f"{me().name}.{spec.id}")
