"""Child: one child of a supervisor, and how it is started, taken over, and stopped. Knows nothing of strategies."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from actors.exits import KILL, SHUTDOWN, AlreadyStarted, Ignored, Reason
from actors.node import begin_monitor, birth_of, demonitor, exit, finish_monitor, join, living, monitor
from actors.pid import Pid, Ref
from actors.supervision import ChildSpec, ChildType

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """What a supervisor tells of a child."""

    id: str
    pid: Pid | None
    state: str  # "running", "restarting" or "down"
    type: ChildType
    num_restarts: int
    last_reason: Reason | None


@dataclass(frozen=True, slots=True)
class Child:
    """A spec, and the process that now runs it: none if it is down, or if it is to be restarted and does not start."""

    spec: ChildSpec
    name: str | None = None  # None: it is given one that begins with `prefix`
    prefix: str = ""
    pid: Pid | None = None
    monitor: Ref | None = None
    is_beginning: bool = False  # its `init` may be under way
    is_restarting: bool = False
    num_starts: int = 0
    last_reason: Reason | None = None

    @property
    def is_running(self) -> bool:
        return self.pid is not None

    @property
    def is_down(self) -> bool:
        return not self.is_running and not self.is_restarting

    @property
    def info(self) -> ChildInfo:
        state = "running" if self.is_running else "restarting" if self.is_restarting else "down"
        num_restarts = max(0, self.num_starts - 1)
        return ChildInfo(self.spec.id, self.pid, state, self.spec.type, num_restarts, self.last_reason)

    def start(self) -> Child:
        """Started; or down, if it was not needed. Raises StartFailed."""
        return self.begin().finish()

    def begin(self) -> Child:
        """The first half, which does not wait for its `init`.

        Who already lives under the name was started by an earlier life of this supervisor, and is taken over as it is.
        """
        server, *args = self.spec.start
        try:
            birth = birth_of(server, tuple(args), self.name, self.prefix, self.spec.resources)
            pid, ref = begin_monitor(birth, timeout=None)
        except AlreadyStarted as taken:
            log.info("%s is alive and taken over", taken.pid)
            return replace(self, pid=taken.pid, monitor=monitor(taken.pid))
        return replace(self, pid=pid, monitor=ref, is_beginning=True)

    def finish(self) -> Child:
        """The other half of `start`."""
        if self.is_beginning:
            assert self.pid is not None and self.monitor is not None
            try:
                finish_monitor(self.pid, self.monitor, timeout=None)
            except Ignored:
                return self.down()
        started = replace(self, is_beginning=False, is_restarting=False, num_starts=self.num_starts + 1)
        if self.spec.restart == "temporary":  # never started again: what it was started with need not be kept
            return replace(started, spec=replace(self.spec, start=self.spec.start[:1]))
        return started

    def stop(self) -> Child:
        """Down when this returns: asked to shut down, waited for as long as its spec says, then killed."""
        if self.pid is not None:
            self._end(self.pid)
        if self.spec.type == "supervisor":
            self._end_orphans()
        return self.down(SHUTDOWN if self.is_running else self.last_reason)

    def down(self, reason: Reason | None = None) -> Child:
        idle = replace(self, pid=None, monitor=None, is_beginning=False, is_restarting=False)
        return replace(idle, last_reason=reason or self.last_reason)

    def failing(self, reason: Reason) -> Child:
        """Down, but to be tried again."""
        return replace(self.down(reason), is_restarting=True)

    def _end(self, pid: Pid) -> None:
        if self.monitor is not None:
            demonitor(self.monitor)
        patience = self.spec.patience
        if patience != "brutal_kill":
            exit(pid, SHUTDOWN)
            if join(pid, None if patience == "infinity" else float(patience)) is not None:
                return
        exit(pid, KILL)
        join(pid)

    def _end_orphans(self) -> None:
        """A supervisor that was killed could not stop its own children."""
        name = self.pid.name if self.pid else self.name
        for orphan in living(f"{name}.") if name else ():
            exit(orphan, KILL)
