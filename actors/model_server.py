"""ModelServer: owns an engine, and with it the model and its caches. Knows no client, no text and no journal.

The process's own thread is the one thread that loads, steps and frees, as MLX binds its arrays to a thread. A step is
one message to itself, so whatever came meanwhile (more work, a cancel, a question) is handled between two steps. The
events of a step, or of several, go out as one message to each request server that has requests in it.
"""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from actors import precedence
from actors.adapter_rack import AdapterRack
from actors.envelope import Down
from actors.genserver import Continue, GenServer, NoReply, Reply
from actors.messages import Abort, Attach, Detach, Events, Hello, ModelLeaving, ModelUp, Run, Turned
from actors.model_choice import ModelChoice, function_at
from actors.model_stats import AskStats, ModelServerStats
from actors.node import cast, me, monitor, now, send, send_after, whereis
from actors.on_board import Given, OnBoard
from actors.pid import From, Pid, Ref, Server
from actors.progress import BEAT_SECONDS, Progress, last_lesson, progress_path, remove_traces
from actors.step_clock import StepClock
from actors.untold import Untold
from engine.event import AdapterWanted
from engine.refusal import Refusal
from engine.wire import pack_events, unpack_request

log = logging.getLogger(__name__)
KEPT_TRACES = 8  # progress files of earlier lives
LOAD_SECONDS = 600.0  # that reading weights may take
QUIET_BEATS = 8  # in a row, and there is time for what can wait


@dataclass(frozen=True, slots=True)
class _Drain: ...


@dataclass(frozen=True, slots=True)
class _Step: ...


@dataclass(frozen=True, slots=True)
class _Beat: ...


def drain(server: Server) -> None:
    """Take nothing new; what runs, runs to its end."""
    cast(server, _Drain())


class ModelServer(GenServer):
    """Consumers are request servers, by name, told of as soon as it is ready."""

    def init(
        self, choice: ModelChoice, directory: str, consumers: tuple[str, ...] = (), gather_seconds: float = 0.0
    ) -> Continue:
        self.choice = choice
        self.directory = Path(directory)
        self.consumers = consumers
        self.untold = Untold(gather_seconds)
        self.epoch = me()
        self.watched: dict[Pid, Ref] = {}
        self.is_stepping = False
        self.is_draining = False
        self.quiet_beats = 0
        inherited = last_lesson(self.directory, self.epoch.name)
        self.clock = StepClock(inherited)
        self.born_at = now()
        self.progress = Progress(progress_path(self.directory, str(self.epoch)), inherited)
        remove_traces(self.directory, self.epoch.name, KEPT_TRACES)
        return Continue("load")

    def handle_continue(self, value: object) -> NoReply:
        precedence.take()  # before MLX and its kernels start threads
        began = now()
        self.progress.begin(LOAD_SECONDS)
        self.engine = function_at(self.choice.make_engine)(self.choice)
        self.rack = AdapterRack(self.choice, self.directory, self.engine, self.progress)
        self.board = OnBoard(self.engine, self.rack, self.progress, self.read_vocabulary, self.turned_away)
        self.load_seconds = now() - began
        self.progress.ready()
        send_after(BEAT_SECONDS, _Beat())
        for consumer in self.consumers:
            self.introduce(whereis(consumer))
        return NoReply()

    def handle_call(self, message: object, from_: From) -> Reply:
        match message:
            case AskStats():
                return Reply(self.stats())
            case Attach() | Detach():
                return Reply(self.change_adapters(message))
        raise NotImplementedError(message)

    def handle_cast(self, message: object) -> NoReply:
        match message:
            case Run():
                self.run(message)
            case Abort(ids):
                for request_id in ids:
                    self.board.drop(request_id)
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
                self.quiet_beats = 0 if self.board.given else self.quiet_beats + 1
                if self.quiet_beats == QUIET_BEATS:
                    self.read_vocabulary()
            case Down(pid=pid):
                self.watched.pop(pid, None)
                self.board.drop_all_of(pid)  # it comes back under another pid, and brings its requests along
                self.keep_stepping()
        return NoReply()

    def format_state(self) -> object:
        return {"epoch": str(self.epoch), "requests": list(self.board.given), "alone": self.board.alone}

    def stats(self) -> ModelServerStats:
        return ModelServerStats(
            is_ready=not self.is_draining,
            num_requests=len(self.board),
            alone=self.board.alone,
            born_at=self.born_at,
            load_seconds=self.load_seconds,
            process_id=os.getpid(),
            fingerprint=self.engine.model.fingerprint,
            engine=self.engine.stats(),
        )

    # Requests

    def run(self, message: Run) -> None:
        self.watch(message.consumer)
        for packed in message.requests:
            self.board.take(unpack_request(packed), message.consumer, is_alone=message.is_alone)

    def turned_away(self, given: Given, refusal: Refusal) -> None:
        self.tell()  # what it had comes before its end
        cast(given.consumer, Turned(self.epoch, given.request.id, refusal.code, refusal.message))

    def read_vocabulary(self) -> None:
        """If it was not yet: after a while with nothing to do, or when stop strings need it. It is no hang."""
        self.progress.begin(LOAD_SECONDS)
        _ = self.engine.vocabulary
        self.progress.end()

    # Steps

    def keep_stepping(self) -> None:
        if self.untold and not self.untold.may_stay(self.engine, now()):
            self.tell()
        self.board.next_solo()
        if self.engine.has_work and not self.is_stepping:
            self.is_stepping = True
            send(self.epoch, _Step())

    def step(self) -> None:
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
        parts = self.board.sort(events)
        self.untold.add(parts)
        if self.board.alone is not None:  # told before the others come in again
            self.tell()
        for told in parts.values():
            self.board.let_go(told)
        for event in events:
            if isinstance(event, AdapterWanted):
                self.load_adapter(event.name)

    def tell(self) -> None:
        """One message to each consumer."""
        for consumer, told in self.untold.take(now()).items():
            cast(consumer, Events(self.epoch, pack_events(told)))

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
        refusal = self.rack.load(name)
        if refusal is not None:
            self.board.turn_away_all_with(name, refusal)

    # Consumers

    def introduce(self, consumer: Pid | None) -> None:
        if consumer is None or self.is_draining:
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
