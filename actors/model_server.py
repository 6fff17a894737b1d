"""ModelServer: owns an engine, and with it the model and its caches. Knows no client, no text and no journal.

The process's own thread is the one thread that loads, steps and frees, as MLX binds its arrays to a thread. A step is
one message to itself, so whatever came meanwhile (more work, a cancel, a question) is handled between two steps. The
events of a step go out as one message to each request server that has requests in it.

A request that is to run alone sets the others aside: they leave the engine with the tokens they have, and come back
once it has got further. Its name stands in the progress file, so if the process dies it is known whose step that was.
"""

import logging
import os
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from actors.adapter_rack import AdapterRack
from actors.envelope import Down
from actors.genserver import Continue, GenServer, NoReply, Reply
from actors.messages import Abort, Attach, Detach, Events, Hello, ModelLeaving, ModelUp, Run, Turned
from actors.model_choice import ModelChoice, function_at
from actors.node import call, cast, me, monitor, now, send, send_after, whereis
from actors.pid import From, Pid, Ref, Server
from actors.progress import BEAT_SECONDS, Progress, last_lesson, progress_path, remove_traces
from actors.step_clock import StepClock
from engine.engine import Engine
from engine.event import AdapterWanted, Event, TokenEvent
from engine.refusal import Refusal
from engine.request import Request
from engine.stats import EngineStats
from engine.wire import pack_events, unpack_request

log = logging.getLogger(__name__)
Tokens = tuple[tuple[int, ...], ...]
KEPT_TRACES = 8  # progress files of earlier lives
LOAD_SECONDS = 600.0  # that reading weights may take
QUIET_BEATS = 8  # in a row, and there is time for what can wait


@dataclass(frozen=True, slots=True)
class ModelServerStats:
    is_ready: bool
    num_requests: int
    alone: str | None
    born_at: float  # on the node's clock
    load_seconds: float
    process_id: int
    engine: EngineStats | None


@dataclass(frozen=True, slots=True)
class _Stats: ...


@dataclass(frozen=True, slots=True)
class _Drain: ...


@dataclass(frozen=True, slots=True)
class _Step: ...


@dataclass(frozen=True, slots=True)
class _Beat: ...


@dataclass(slots=True)
class _Given:
    """A request on board: as it came, for whom, and what it has by now."""

    request: Request
    consumer: Pid
    tokens: list[list[int]]
    is_alone: bool = False
    is_aside: bool = False

    def resumed(self) -> Request:
        tokens: Tokens = tuple(map(tuple, self.tokens))
        return replace(self.request, resumed=tokens) if any(tokens) else self.request


def stats(server: Server, timeout: float | None = 5.0) -> ModelServerStats:
    """What it does and has done; answered between two steps."""
    answer = call(server, _Stats(), timeout)
    assert isinstance(answer, ModelServerStats)
    return answer


def drain(server: Server) -> None:
    """Take nothing new; what runs, runs to its end."""
    cast(server, _Drain())


class ModelServer(GenServer):
    """Consumers are request servers, by name, told of as soon as it is ready."""

    def init(self, choice: ModelChoice, directory: str, consumers: tuple[str, ...] = ()) -> Continue:
        self.choice = choice
        self.directory = Path(directory)
        self.consumers = consumers
        self.engine: Engine | None = None
        self.epoch = me()
        self.given: dict[str, _Given] = {}
        self.lonely: deque[str] = deque()  # to be run alone, one after the other
        self.alone: str | None = None
        self.watched: dict[Pid, Ref] = {}
        self.is_stepping = False
        self.is_draining = False
        self.quiet_beats = 0
        inherited = last_lesson(self.directory, self.epoch.name)
        self.clock = StepClock(inherited)
        self.born_at = now()
        self.load_seconds = 0.0
        self.progress = Progress(progress_path(self.directory, str(self.epoch)), inherited)
        remove_traces(self.directory, self.epoch.name, KEPT_TRACES)
        return Continue("load")

    def handle_continue(self, value: object) -> NoReply:
        began = now()
        self.progress.begin(LOAD_SECONDS)
        self.engine = function_at(self.choice.make_engine)(self.choice)
        self.rack = AdapterRack(self.choice, self.directory, self.engine, self.progress)
        self.load_seconds = now() - began
        self.progress.ready()
        send_after(BEAT_SECONDS, _Beat())
        for consumer in self.consumers:
            self.introduce(whereis(consumer))
        return NoReply()

    def handle_call(self, message: object, from_: From) -> Reply:
        match message:
            case _Stats():
                engine = None if self.engine is None else self.engine.stats()
                is_ready = self.engine is not None and not self.is_draining
                times = (self.born_at, self.load_seconds)
                return Reply(ModelServerStats(is_ready, len(self.given), self.alone, *times, os.getpid(), engine))
            case Attach() | Detach():
                return Reply(self.change_adapters(message))
        raise NotImplementedError(message)

    def handle_cast(self, message: object) -> NoReply:
        match message:
            case Run():
                self.run(message)
            case Abort(ids):
                for request_id in ids:
                    self.drop(request_id)
            case Hello(consumer):
                self.introduce(consumer)
            case _Drain():
                self.is_draining = True
                for consumer in list(self.watched):
                    cast(consumer, ModelLeaving(self.epoch))
        self.keep_stepping()
        return NoReply()

    def handle_info(self, message: object) -> NoReply:
        match message:
            case _Step():
                self.is_stepping = False
                self.step()
                self.keep_stepping()
            case _Beat():
                self.progress.end()
                send_after(BEAT_SECONDS, _Beat())
                self.quiet_beats = 0 if self.given else self.quiet_beats + 1
                if self.quiet_beats == QUIET_BEATS:
                    self.read_vocabulary()
            case Down(pid=pid):
                self.forget_consumer(pid)
        return NoReply()

    def format_state(self) -> object:
        return {"epoch": str(self.epoch), "requests": list(self.given), "alone": self.alone}

    # Requests

    def run(self, message: Run) -> None:
        self.watch(message.consumer)
        for packed in message.requests:
            request = unpack_request(packed)
            self.drop(request.id)
            tokens = [list(had) for had in request.resumed] or [[] for _ in range(request.sampling.n)]
            given = _Given(request, message.consumer, tokens, message.is_alone)
            self.given[request.id] = given
            if message.is_alone:
                self.lonely.append(request.id)
                given.is_aside = True
            elif self.alone is not None or self.lonely:
                given.is_aside = True
            else:
                self.enter(given)

    def enter(self, given: _Given) -> None:
        """Into the engine, with what it has."""
        assert self.engine is not None
        given.is_aside = False
        try:
            if given.request.sampling.stop:
                self.read_vocabulary()
            if given.request.adapter in self.rack.broken:
                raise self.rack.broken[given.request.adapter]
            self.engine.add(given.resumed())
        except Refusal as refusal:
            self.turn_away(given, refusal)

    def turn_away(self, given: _Given, refusal: Refusal) -> None:
        self.forget(given.request.id)
        cast(given.consumer, Turned(self.epoch, given.request.id, refusal.code, refusal.message))

    def drop(self, request_id: str) -> None:
        given = self.given.get(request_id)
        if given is None or self.engine is None:
            return
        if not given.is_aside:
            self.engine.abort(request_id)
        self.forget(request_id)

    def forget(self, request_id: str) -> None:
        self.given.pop(request_id, None)
        if request_id in self.lonely:
            self.lonely.remove(request_id)
        if request_id == self.alone:
            self.end_solo()

    # Running alone

    def next_solo(self) -> None:
        """If somebody is to run alone and nobody does, set all others aside and begin."""
        if self.alone is not None or not self.lonely or self.engine is None:
            return
        for given in self.given.values():
            if not given.is_aside:
                self.engine.abort(given.request.id)
                given.is_aside = True
        self.alone = self.lonely.popleft()
        self.progress.run_alone(self.alone)
        self.enter(self.given[self.alone])

    def end_solo(self) -> None:
        """It got further, or ended: the next one's turn, or everybody's."""
        self.alone = None
        self.progress.run_alone(None)
        self.next_solo()
        if self.alone is None:
            for given in list(self.given.values()):
                if given.is_aside:
                    self.enter(given)

    def read_vocabulary(self) -> None:
        """If it was not yet: after a while with nothing to do, or when stop strings need it. It is no hang."""
        if self.engine is not None:
            self.progress.begin(LOAD_SECONDS)
            _ = self.engine.vocabulary
            self.progress.end()

    # Steps

    def keep_stepping(self) -> None:
        self.next_solo()
        if self.engine is not None and self.engine.has_work and not self.is_stepping:
            self.is_stepping = True
            send(self.epoch, _Step())

    def step(self) -> None:
        assert self.engine is not None
        if not self.engine.has_work:
            return
        before = self.engine.counts["prompt_tokens"]
        is_reading = bool(self.engine.scheduler.prefilling or self.engine.scheduler.num_waiting)
        allowed = self.clock.allowed(self.engine.options.max_batch_tokens if is_reading else 0)
        self.progress.begin(allowed, self.clock.lesson())
        began = time.monotonic()
        events = self.engine.step()
        self.clock.record(time.monotonic() - began, self.engine.counts["prompt_tokens"] - before)
        self.progress.end()
        self.deliver(events)

    def deliver(self, events: list[Event]) -> None:
        """One message to each consumer. What belongs to nobody, or to who was set aside, is not told."""
        parts: dict[Pid, list[Event]] = {}
        heard: dict[str, bool] = {}
        for event in events:
            if isinstance(event, AdapterWanted):
                self.load_adapter(event.name)
                continue
            given = self.given.get(event.request_id)
            if given is None or given.is_aside:
                continue
            parts.setdefault(given.consumer, []).append(event)
            if isinstance(event, TokenEvent):
                given.tokens[event.choice].append(event.token)
            heard[event.request_id] = heard.get(event.request_id, False) or isinstance(event, TokenEvent)
        for consumer, told in parts.items():
            cast(consumer, Events(self.epoch, pack_events(told)))
        for request_id, has_progressed in heard.items():
            self.look_after(request_id, has_progressed)

    def look_after(self, request_id: str, has_progressed: bool) -> None:
        """Let a request go that has ended, and the others in again when one that ran alone got further."""
        assert self.engine is not None
        if request_id not in self.engine.roster:
            self.forget(request_id)
        elif request_id == self.alone and has_progressed:
            self.given[request_id].is_alone = False
            self.end_solo()

    # Adapters

    def change_adapters(self, change: Attach | Detach) -> Refusal | None:
        match change:
            case Attach(name, path):
                refusal = self.rack.attach(name, path)
            case Detach(name):
                refusal = self.rack.detach(name)
        if refusal is None:
            self.announce()
        return refusal

    def load_adapter(self, name: str) -> None:
        """One that cannot be read any more costs its own requests an answer, and nobody else anything."""
        assert self.engine is not None
        refusal = self.rack.load(name)
        if refusal is not None:
            for given in [given for given in self.given.values() if given.request.adapter == name]:
                self.engine.abort(given.request.id)
                self.turn_away(given, refusal)

    # Consumers

    def introduce(self, consumer: Pid | None) -> None:
        if consumer is None or self.engine is None or self.is_draining:
            return
        self.watch(consumer)
        options = self.engine.options
        cast(consumer, ModelUp(self.epoch, self.engine.capacity, options.max_sequences, self.rack.names))

    def announce(self) -> None:
        for consumer in list(self.watched):
            self.introduce(consumer)

    def watch(self, consumer: Pid) -> None:
        if consumer not in self.watched:
            self.watched[consumer] = monitor(consumer)

    def forget_consumer(self, consumer: Pid) -> None:
        """It will come back under another pid, and bring its requests along."""
        self.watched.pop(consumer, None)
        for request_id in [name for name, given in self.given.items() if given.consumer == consumer]:
            self.drop(request_id)
        self.keep_stepping()
