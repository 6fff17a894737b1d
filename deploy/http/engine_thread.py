"""EngineThread: an Engine on one thread of its own. Commands go in, a step's events come out as one message.

Owns the thread and the engine's lives. Refuses to know what requests mean, who asked, and what an event loop is.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from actors.supervision import RestartWindow
from engine.engine import Engine
from engine.event import Event
from engine.refusal import Refusal
from engine.request import Request
from engine.stats import EngineStats

MAX_RESTARTS, MAX_SECONDS = 10, 5.0


@dataclass(frozen=True, slots=True)
class Born:
    """A life of the engine has begun."""

    life: int
    engine: Engine


@dataclass(frozen=True, slots=True)
class Told:
    """What a step brought, and how things stand behind it."""

    life: int
    events: tuple[Event, ...]
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine would not take a request."""

    life: int
    request_id: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Died:
    """A life of the engine is over."""

    life: int
    reason: str
    is_last: bool  # too many in too short a time: no other life follows


Report = Born | Told | Refused | Died
Command = Callable[[Engine], object]


class Killed(Exception):
    """Somebody wanted this life to end."""


class EngineThread:
    """Starts at once; `report` is called on the thread itself."""

    def __init__(self, build: Callable[[], Engine], report: Callable[[Report], None]) -> None:
        self._build = build
        self._report = report
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._life = 0
        self._may_step = threading.Event()
        self._may_step.set()
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    # What others ask, from any thread

    def add(self, requests: Iterable[Request], life: int) -> None:
        for request in requests:
            self._commands.put(lambda engine, request=request: self._add(engine, request, life))  # type: ignore[misc]

    def abort(self, request_id: str) -> None:
        self._commands.put(lambda engine: engine.abort(request_id))

    def do(self, command: Callable[[Engine], Any], done: Callable[[Any, Refusal | None], None]) -> None:
        """Run a command between two steps; `done` is told on the thread what it returned, or why it refused."""

        def run(engine: Engine) -> None:
            try:
                result = command(engine)
            except Refusal as refusal:
                done(None, refusal)
            else:
                done(result, None)

        self._commands.put(run)

    def suspend(self) -> None:
        self._may_step.clear()
        self._commands.put(lambda engine: None)

    def resume(self) -> None:
        self._may_step.set()
        self._commands.put(lambda engine: None)

    @property
    def is_suspended(self) -> bool:
        return not self._may_step.is_set()

    def kill(self) -> None:
        def fail(engine: Engine) -> None:
            raise Killed("killed")

        self._commands.put(fail)

    def stop(self) -> None:
        self._commands.put(None)
        self._thread.join()

    # The thread

    def _live(self) -> None:
        """One life after the other, until told to stop, or until they end too fast."""
        deaths = RestartWindow(MAX_RESTARTS, MAX_SECONDS)
        while not deaths.is_exceeded:
            self._life += 1
            reason = self._one_life()
            if reason is None:
                return
            deaths = deaths.record(time.monotonic())
            self._report(Died(self._life, reason, is_last=deaths.is_exceeded))

    def _one_life(self) -> str | None:
        """Serve until told to stop, or until something goes wrong: then what."""
        try:
            engine = self._build()
            self._report(Born(self._life, engine))
            self._serve(engine)
            return None
        except Killed:
            return "killed"
        except Exception as trouble:  # a supervisor's place: it catches what it did not raise
            return f"{type(trouble).__name__}: {trouble}"[:200]

    def _serve(self, engine: Engine) -> None:
        while True:
            is_busy = engine.has_work and self._may_step.is_set()
            if not is_busy or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    return
                command(engine)
                continue
            events = tuple(engine.step())
            if events:
                self._report(Told(self._life, events, engine.stats()))

    def _add(self, engine: Engine, request: Request, life: int) -> None:
        if life != self._life:
            return
        try:
            engine.add(request)
        except Refusal as refusal:
            self._report(Refused(life, request.id, refusal))
