"""Inline: a node in one program on its own clock. Deterministic, and nearly as quick as function calls.

    with Inline() as node:
        counter = spawn(Counter, 1)
        assert call(counter, "next") == 2
        node.advance(60)  # its timers fire, in their order

Messages are handled in the order in which they were sent, and nothing happens but while somebody waits: the test, in a
call, `run` or `advance`, or a process in a call or a join. Time passes only when nothing else is left to do, and then
it jumps. A wait of the test that nothing can end is raised as Deadlock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from actors.baton import Baton, Gone, Waiter
from actors.birth import Birth, label_of
from actors.envelope import Envelope, GoOn
from actors.exits import KILLED, NOPROC, AlreadyStarted, Died, NoProc, Reason, StartFailed, Timeout
from actors.loop import Loop
from actors.node import enter, leave
from actors.pid import From, Pid, Ref
from actors.timers import Timers
from actors.transport import Cancel, Notify


class Deadlock(Exception):
    """There is nothing left that could end this wait."""


class Cell:
    """One process on this node."""

    def __init__(self, birth: Birth, pid: Pid, node: Inline) -> None:
        self.loop = Loop(birth, pid, node, self)
        self.mailbox: deque[tuple[Envelope, From | None]] = deque()
        self.watchers: list[Notify] = []
        self.is_busy = False
        self.reason: Reason | None = None  # None: alive
        self.node = node

    def enqueue(self, envelope: Envelope, from_: From | None) -> None:
        if self.reason is None:
            self.mailbox.append((envelope, from_))
            self.node.ready.append(self)

    def die(self, reason: Reason) -> None:
        if self.reason is not None:
            return
        self.reason = reason
        self.mailbox.clear()
        self.node.bury(self.loop.pid, reason)
        watchers, self.watchers = self.watchers, []
        for notify in watchers:
            notify(self.loop.pid, reason)


class Inline:
    def __init__(self, start: float = 0.0) -> None:
        self.ready: deque[Cell] = deque()  # one entry a message
        self.reasons: dict[Pid, Reason] = {}  # of those that ended
        self._clock = start
        self._cells: dict[Pid, Cell] = {}
        self._failed: dict[Pid, StartFailed] = {}  # in their `init`, which whoever began them asks for
        self._epochs: dict[str, int] = {}
        self._timers = Timers()
        self._answers: dict[Ref, list[object]] = {}  # of the calls that wait
        self._numbers = count(1)
        self._baton: Baton[Cell] = Baton(self._work)

    def __enter__(self) -> Inline:
        enter(self)
        return self

    def __exit__(self, *error: object) -> None:
        leave(self)
        self._baton.close()

    def run(self) -> None:
        """Let everything happen that can happen now."""
        self._wait(lambda: not self._has_work(), None)

    def advance(self, seconds: float) -> None:
        """Let time pass: every timer fires at its own moment, and what follows from it happens then."""
        self._wait(lambda: False, seconds)

    @property
    def loop(self) -> Loop | None:
        return self._baton.stack[-1].loop if self._baton.stack else None

    def now(self) -> float:
        return self._clock

    def begin(self, birth: Birth, notify: Notify | None, timeout: float | None) -> Pid:
        """Its `init` is over when this returns."""
        name = birth.name or f"{birth.prefix}{label_of(birth.server)}-{next(self._numbers)}"
        living = self.find(name)
        if living is not None:
            raise AlreadyStarted(living)
        pid = Pid(name, self._epochs.get(name, 0) + 1)
        self._epochs[name] = pid.epoch
        cell = self._cells[pid] = Cell(birth, pid, self)
        give_up = self.schedule(timeout, lambda: cell.die("timeout")) if timeout is not None else lambda: None
        failed = self._inside(cell, cell.loop.start)
        give_up()
        if failed is not None:
            cell.die(failed.reason)
        elif cell.reason is not None:
            failed = StartFailed(cell.reason)
        if failed is not None:
            self._failed[pid] = failed
            return pid
        if notify is not None:
            self.watch(pid, notify)
        # Its handle_continue comes before its messages, and after its parent goes on.
        cell.mailbox.appendleft((GoOn(), None))
        self.ready.append(cell)
        return pid

    def finish(self, pid: Pid, timeout: float | None) -> None:
        failed = self._failed.pop(pid, None)
        if failed is not None:
            raise failed

    def find(self, name: str) -> Pid | None:
        pid = Pid(name, self._epochs.get(name, 0))
        return pid if pid in self._cells else None

    def living(self, prefix: str) -> list[Pid]:
        return sorted(pid for pid in self._cells if pid.name.startswith(prefix))

    def lives(self, prefix: str) -> dict[str, int]:
        return {name: epoch for name, epoch in self._epochs.items() if name.startswith(prefix)}

    def is_alive(self, pid: Pid) -> bool:
        return pid in self._cells

    def bury(self, pid: Pid, reason: Reason) -> None:
        self.reasons[pid] = reason
        del self._cells[pid]

    def post(self, pid: Pid, envelope: Envelope) -> None:
        self._check()
        cell = self._cells.get(pid)
        if cell is not None:
            cell.loop.arrive(envelope)
            self._check()

    def ask(self, pid: Pid, envelope: Envelope, timeout: float | None) -> Any:
        self._check()
        cell = self._cells.get(pid)
        if cell is None:
            raise NoProc(pid, NOPROC)
        ref = Ref(next(self._numbers))
        answer = self._answers[ref] = []
        try:
            cell.loop.arrive(envelope, From(pid, self.loop.pid if self.loop else None, ref))
            self._wait(lambda: bool(answer) or cell.reason is not None, timeout)
        finally:
            del self._answers[ref]
        if answer:
            return answer[0]
        if cell.reason is not None:
            raise Died(pid, cell.reason)
        raise Timeout(pid, "timeout")

    async def ask_async(self, pid: Pid, envelope: Envelope, timeout: float | None) -> Any:
        return self.ask(pid, envelope, timeout)

    def answer(self, from_: From, value: object) -> None:
        if from_.ref in self._answers:
            self._answers[from_.ref].append(value)

    def watch(self, pid: Pid, notify: Notify) -> None:
        cell = self._cells.get(pid)
        if cell is None:
            notify(pid, NOPROC)
        else:
            cell.watchers.append(notify)

    def join(self, pid: Pid, timeout: float | None) -> Reason | None:
        self._check()
        cell = self._cells.get(pid)
        if cell is None:
            return NOPROC
        self._wait(lambda: cell.reason is not None, timeout)
        return cell.reason

    def kill(self, pid: Pid) -> None:
        cell = self._cells.get(pid)
        if cell is not None:
            cell.die(KILLED)
        self._check()

    def schedule(self, seconds: float, fire: Callable[[], None]) -> Cancel:
        return self._timers.add(self._clock + seconds, fire)

    def _wait(self, is_over: Callable[[], bool], timeout: float | None) -> None:
        self._check()
        deadline = None if timeout is None else self._clock + timeout
        stack = list(self._baton.stack)
        self._baton.wait(Waiter(lambda: is_over() or any(cell.reason is not None for cell in stack), deadline))
        self._check()

    def _work(self, waiters: list[Waiter]) -> None:
        """One piece of work; where there is none, the clock goes to the next thing that is due."""
        if self._step():
            return
        deadlines = [waiter.deadline for waiter in waiters if waiter.deadline is not None]
        moments = deadlines if self._timers.next_at is None else [*deadlines, self._timers.next_at]
        if not moments:
            raise Deadlock("a wait without an end: no message, no timer, no timeout")
        self._clock = max(self._clock, min(moments))
        fire = self._timers.pop(self._clock)
        if fire is not None:
            fire()
            return
        next(waiter for waiter in waiters if waiter.deadline == min(moments)).is_late = True

    def _step(self) -> bool:
        """Handle the oldest message of a process that is not itself waiting."""
        for index, cell in enumerate(self.ready):
            if not cell.is_busy or cell.reason is not None:
                del self.ready[index]
                if cell.mailbox:
                    self._inside(cell, cell.loop.take, *cell.mailbox.popleft())
                return True
        return False

    def _has_work(self) -> bool:
        return any(not cell.is_busy or cell.reason is not None for cell in self.ready) or self._baton.has_ready()

    def _inside(self, cell: Cell, work: Callable[..., Any], *args: object) -> Any:
        """Run a piece of a process, as that process."""
        stack = self._baton.stack
        stack.append(cell)
        cell.is_busy = True
        try:
            return work(*args)
        except Gone:
            if cell.reason is None:
                raise
        finally:
            cell.is_busy = False
            stack.pop()

    def _check(self) -> None:
        """Unwind the stack of a process that died in the middle of a callback."""
        if any(cell.reason is not None for cell in self._baton.stack):
            raise Gone
