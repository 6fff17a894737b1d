"""RequestServer: one partition of the requests. The shell around a Ledger: it writes, sends and wakes, decides nothing.

Every message ends in `flush`: what was decided is written to the journal, and only then seen by anybody. So a client
that was answered can rely on the journal, and a model server never has a request whose attempt is not on record.
"""

import logging
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from actors.asking import Ask, body_of, request_of
from actors.envelope import Down
from actors.fleet import Fleet
from actors.genserver import Continue, GenServer, NoReply, Reply
from actors.journal import Journal
from actors.ledger import Ledger
from actors.ledger_records import from_plain
from actors.messages import Abort, Events, ModelLeaving, ModelUp, Turned
from actors.model_choice import function_at
from actors.node import call, call_async, cast, me, now, reply, send, send_after
from actors.outbox import Outbox, Promise
from actors.pid import From, Pid, Server
from actors.polls import Had, Part, Poll, Polls
from actors.refusals import JournalFailing, JournalTaken, Unavailable
from actors.request_stats import NOT_OPEN, RequestServerStats, stats_of
from actors.root_watch import RootWatch
from actors.running import Running, running_of
from actors.system_config import SystemConfig
from engine.refusal import BadRequest, Refusal
from engine.wire import unpack_events

log = logging.getLogger(__name__)
TICK_SECONDS = 0.2
MAX_SHOWN = 1000
LOCK_SECONDS = 0.02  # between two tries to get the journal of an owner who is dying


@dataclass(frozen=True, slots=True)
class Submit:
    """Take a request. A listener that waits will hear of it; `had` is what its client has of it already."""

    ask: Ask
    listener: str = ""
    wants_whole: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    id: str
    num_choices: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class _Cancel:
    id: str
    tenant: str


@dataclass(frozen=True, slots=True)
class _Stats: ...


@dataclass(frozen=True, slots=True)
class _Running: ...


@dataclass(frozen=True, slots=True)
class _Drain:
    is_on: bool


@dataclass(frozen=True, slots=True)
class _Tick: ...


@dataclass(frozen=True, slots=True)
class _Flush: ...


def submit(server: Server, message: Submit, timeout: float | None = 5.0) -> Accepted:
    """Have a request accepted: it is in the journal when this returns. Raises the refusal, if there is one."""
    accepted: Accepted = answer_of(call(server, message, timeout))
    return accepted


async def submit_async(server: Server, message: Submit) -> Accepted:
    accepted: Accepted = answer_of(await call_async(server, message))
    return accepted


def poll(server: Server, message: Poll) -> list[Part]:
    """What is new of some requests; waits for it as long as the poll says."""
    parts: list[Part] = answer_of(call(server, message, message.wait_seconds + 5.0))
    return parts


def cancel(server: Server, request_id: str, tenant: str = "") -> bool:
    """End a request; False if it had ended already."""
    was_living: bool = answer_of(call(server, _Cancel(request_id, tenant)))
    return was_living


def stats(server: Server, timeout: float | None = 5.0) -> RequestServerStats:
    found: RequestServerStats = call(server, _Stats(), timeout)
    return found


def running(server: Server, timeout: float | None = 5.0) -> tuple[Running, ...]:
    """The requests that are not finished, those that came first; there may be more than who watches can read."""
    found: tuple[Running, ...] = call(server, _Running(), timeout)
    return found


def drain(server: Server, is_on: bool = True) -> None:
    """Accept nothing new; what was accepted goes on."""
    call(server, _Drain(is_on))


def answer_of(answer: Any) -> Any:
    if isinstance(answer, Refusal):
        raise answer
    return answer


class RequestServer(GenServer):
    def init(self, config: SystemConfig, partition: int, is_in_tree: bool = False) -> Continue:
        self.config = config
        self.partition = partition
        self.is_open = False  # the journal is ours, and read
        self.early: list[tuple[object, From | None]] = []  # came before the journal was ours
        self.is_flushing = False
        self.is_draining = False
        self.root = RootWatch(config, is_in_tree)
        self.num_ticks = 0
        return Continue("open")

    def handle_continue(self, value: object) -> NoReply:
        self.tokenizer = function_at(self.config.choice.make_tokenizer)(self.config.choice)
        options = replace(self.config.limits, num_active=self.config.replicas)
        self.ledger = Ledger(self.tokenizer.vocabulary, options)
        self.polls = Polls(self.ledger)
        self.open()
        return NoReply()

    # Opening

    def open(self) -> None:
        """Own the journal and know its past; an owner that was killed may take a moment to let go of it."""
        try:
            journal = Journal(self.config.journal_directory(self.partition), self.config.level)
        except JournalTaken:
            send_after(LOCK_SECONDS, "open")
            return
        found = journal.recover()
        if found.damage is not None:
            log.warning("%s: the journal ends at byte %d: %s", me(), found.damage.offset, found.damage.reason)
        self.ledger.replay(map(from_plain, found.records))
        self.outbox = Outbox(journal, self.ledger, self.polls)
        self.outbox.record(self.ledger.open(now(), clock_name()))
        self.fleet = Fleet(self.config, self.ledger, self.outbox)
        self.fleet.settle()
        self.outbox.flush()
        self.is_open = True
        self.fleet.greet()
        self.root.look()
        send_after(TICK_SECONDS, _Tick())
        early, self.early = self.early, []
        for message, from_ in early:
            self.take_early(message, from_)

    def take_early(self, message: object, from_: From | None) -> None:
        if from_ is None:
            self.handle_cast(message)
            return
        answer = self.handle_call(message, from_)
        if isinstance(answer, Reply):
            reply(from_, answer.value)

    # Messages

    def handle_call(self, message: object, from_: From) -> Reply | NoReply:
        if not self.is_open and not isinstance(message, _Stats | _Running):
            self.early.append((message, from_))
            return NoReply()
        try:
            return self.answer(message, from_)
        except Refusal as refusal:
            return Reply(refusal)

    def answer(self, message: object, from_: From) -> Reply | NoReply:
        match message:
            case Submit():
                self.accept(message, from_)
                self.flush_soon()
                return NoReply()
            case Poll():
                parts = self.polls.ask(message, from_, now())
                return Reply(parts) if parts or message.wait_seconds <= 0 else NoReply()
            case _Cancel(request_id, tenant):
                was_living = self.cancel(request_id, tenant)
                self.outbox.flush()
                return Reply(was_living)
            case _Stats():
                return Reply(self.stats())
            case _Running():
                return Reply(self.running())
            case _Drain(is_on):
                self.is_draining = is_on
                return Reply(None)
        raise NotImplementedError(message)

    def handle_cast(self, message: object) -> NoReply:
        if not self.is_open:
            self.early.append((message, None))
            return NoReply()
        match message:
            case Events():
                self.hear(message)
            case ModelUp():
                self.fleet.meet(message)
            case ModelLeaving(model):
                self.ledger.model_busy(str(model))
            case Turned(model, request_id, code, text):
                self.outbox.record(self.ledger.refused(str(model), request_id, code, text, now()))
                self.outbox.touched.add(request_id)
        self.outbox.flush()
        return NoReply()

    def handle_info(self, message: object) -> NoReply:
        match message:
            case "open":
                self.open()
            case _Tick():
                self.tick()
                send_after(TICK_SECONDS, _Tick())
            case Pid() | None:
                self.root.found(message)
            case _Flush():
                self.is_flushing = False
                self.outbox.flush()
            case Down(pid=pid) if self.root.is_watched(pid):
                self.root.down(message)
            case Down():
                self.fleet.down(message)
                self.outbox.flush()
        return NoReply()

    def format_state(self) -> object:
        return self.stats()

    # Requests

    def accept(self, message: Submit, from_: From) -> None:
        if self.is_draining:
            raise Unavailable("the system is shutting down and takes no new requests")
        if self.fleet.capacity is None:
            raise Unavailable("the model is still being loaded; come back in a moment")
        if self.outbox.journal.failure is not None:
            raise JournalFailing(f"nothing new can be accepted: {self.outbox.journal.failure}")
        ask, limits = message.ask, self.fleet.capacity
        request = request_of(ask, self.tokenizer, limits.capacity, limits.max_sequences, limits.adapters)
        moment = now()
        deadline = None if ask.deadline_seconds is None else moment + ask.deadline_seconds
        record = self.ledger.accept(request, body_of(request), moment, deadline, ask.lease_seconds)
        self.outbox.record(record)
        num_choices = request.sampling.n
        accepted = Accepted(request.id, num_choices, len(request.prompt))
        self.outbox.promise(Promise(from_, request.id, accepted, record is not None))
        if message.listener:
            had: Had | None = None if message.wants_whole else (0,) * num_choices
            self.polls.join(message.listener, request.id, had)
            if record is None:
                self.outbox.touched.add(request.id)  # it may have something to tell already

    def hear(self, message: Events) -> None:
        try:
            events = unpack_events(message.packed)
        except BadRequest:
            self.ledger.counts["malformed_messages"] += 1
            return
        record, touched = self.ledger.tell(str(message.model), events, message.packed, now())
        self.outbox.record(record)
        self.outbox.touched |= touched

    def cancel(self, request_id: str, tenant: str) -> bool:
        epoch = self.ledger.find(request_id, tenant).epoch
        record = self.ledger.cancel(request_id, now(), tenant)
        if record is None:
            return False
        self.outbox.record(record)
        self.tell_ended(request_id, epoch)
        return True

    def tell_ended(self, request_id: str, epoch: str | None) -> None:
        self.outbox.touched.add(request_id)
        if epoch is not None:
            cast(Pid.parse(epoch), Abort((request_id,)))

    def flush_soon(self) -> None:
        """Those that wait behind this message share its write."""
        if not self.is_flushing:
            self.is_flushing = True
            send(me(), _Flush())

    # Time

    def tick(self) -> None:
        moment = now()
        for from_ in self.polls.expire(moment):
            reply(from_, [])
        for ended, epoch in list(self.ledger.expire(moment)):
            self.outbox.record(ended)
            self.tell_ended(ended.id, epoch)
        self.ledger.forget(moment)
        self.outbox.flush()
        self.outbox.compact_if_needed()
        self.num_ticks += 1
        if self.num_ticks % 5 == 0:
            self.root.look()

    def stats(self) -> RequestServerStats:
        if not self.is_open:
            return NOT_OPEN
        return stats_of(
            self.ledger,
            self.outbox.journal,
            self.fleet.models,
            self.fleet.adapters,
            len(self.polls),
            self.is_draining,
        )

    def running(self) -> tuple[Running, ...]:
        if not self.is_open:
            return ()
        living = (entry for entry in self.ledger.entries.values() if not entry.is_finished)
        return tuple(map(running_of, islice(living, MAX_SHOWN)))


def clock_name() -> str:
    """Which machine, and which of its lives, the monotonic clock belongs to."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{time.time() - time.monotonic():.0f}"
