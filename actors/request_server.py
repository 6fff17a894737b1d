"""RequestServer: one partition of the requests. The shell around a Ledger: it writes, sends and wakes, decides nothing.

Every message ends in `flush`: what was decided is written to the journal, and only then seen by anybody. So a client
that was answered can rely on the journal, and a model server never has a request whose attempt is not on record.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.asking import Ask, body_of, request_of
from actors.envelope import Down
from actors.exits import is_abnormal
from actors.genserver import Continue, GenServer, NoReply, Reply
from actors.journal import Journal
from actors.ledger import Ledger
from actors.ledger_records import Attempted, Record, from_plain, to_plain
from actors.messages import Abort, Events, Forgive, Hello, ModelLeaving, ModelUp, Run, Turned
from actors.model_loading import function_at
from actors.node import call, cast, is_alive, me, monitor, now, reply, send, send_after, whereis
from actors.pid import From, Pid, Server
from actors.polls import Had, Part, Poll, Polls
from actors.progress import NOBODY, glance, progress_path
from actors.refusals import JournalFailing, JournalTaken, Unavailable
from actors.root_watch import RootWatch
from actors.system_config import SystemConfig
from engine.refusal import BadRequest, Refusal
from engine.wire import pack_request, unpack_events

log = logging.getLogger(__name__)
TICK_SECONDS = 0.2
LOCK_SECONDS = 0.02  # between two tries to get the journal of an owner who is dying
SMALL_JOURNAL_BYTES = 8 << 20


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
class RequestServerStats:
    """Counts since the first start of this partition, as far as its journal remembers; the first group is now."""

    is_open: bool
    is_draining: bool
    num_living: int
    num_kept: int
    num_on_board: int
    owed_tokens: int
    tokens_per_second: float | None
    polls: int
    models: tuple[str, ...]
    active_models: tuple[str, ...]
    adapters: tuple[str, ...]
    journal_bytes: int
    journal_failure: str | None
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Cancel:
    id: str
    tenant: str


@dataclass(frozen=True, slots=True)
class _Stats: ...


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
        self.directory = Path(config.directory)
        self.journal: Journal | None = None
        self.early: list[tuple[object, From | None]] = []  # came before the journal was ours
        self.models: dict[Pid, ModelUp] = {}
        self.watched: set[Pid] = set()
        self.capacity: ModelUp | None = None  # what the last model server said it can take
        self.unanswered: list[
            tuple[From, str, bool, Accepted]
        ] = []  # accepted and not yet written; the bool: it is new
        self.touched: set[str] = set()
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
            self.journal = Journal(self.config.journal_directory(self.partition), self.config.level)
        except JournalTaken:
            send_after(LOCK_SECONDS, "open")
            return
        found = self.journal.recover()
        if found.damage is not None:
            log.warning("%s: the journal ends at byte %d: %s", me(), found.damage.offset, found.damage.reason)
        self.ledger.replay(map(from_plain, found.records))
        self.record(self.ledger.open(now(), clock_name()))
        self.settle()
        self.flush()
        for name in self.config.model_names:
            model = whereis(name)
            if model is not None:
                cast(model, Hello(me()))
        self.root.look()
        send_after(TICK_SECONDS, _Tick())
        early, self.early = self.early, []
        for message, from_ in early:
            self.take_early(message, from_)

    def settle(self) -> None:
        """Whom the journal says to be on board of a model server is sent again; if it died meanwhile, that counts."""
        for epoch in list(self.ledger.boards):
            model = Pid.parse(epoch)
            if is_alive(model):
                self.record(self.ledger.release(epoch, now()))
            else:
                self.record(self.ledger.model_down(epoch, self.alone_in(epoch), now()))

    def take_early(self, message: object, from_: From | None) -> None:
        if from_ is None:
            self.handle_cast(message)
            return
        answer = self.handle_call(message, from_)
        if isinstance(answer, Reply):
            reply(from_, answer.value)

    # Messages

    def handle_call(self, message: object, from_: From) -> Reply | NoReply:
        if self.journal is None and not isinstance(message, _Stats):
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
                self.flush()
                return Reply(was_living)
            case _Stats():
                return Reply(self.stats())
            case _Drain(is_on):
                self.is_draining = is_on
                return Reply(None)
        raise NotImplementedError(message)

    def handle_cast(self, message: object) -> NoReply:
        if self.journal is None:
            self.early.append((message, None))
            return NoReply()
        match message:
            case Events():
                self.hear(message)
            case ModelUp(model):
                self.meet(message)
            case ModelLeaving(model):
                self.ledger.model_busy(str(model))
            case Turned(model, request_id, code, text):
                self.record(self.ledger.refused(str(model), request_id, code, text, now()))
                self.touched.add(request_id)
        self.flush()
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
                self.flush()
            case Down(pid=pid) if self.root.is_watched(pid):
                self.root.down(message)
            case Down():
                self.model_down(message)
                self.flush()
        return NoReply()

    def format_state(self) -> object:
        return self.stats()

    # Requests

    def accept(self, message: Submit, from_: From) -> None:
        assert self.journal is not None
        if self.is_draining:
            raise Unavailable("the system is shutting down and takes no new requests")
        if self.capacity is None:
            raise Unavailable("the model is still being loaded; come back in a moment")
        if self.journal.failure is not None:
            raise JournalFailing(f"nothing new can be accepted: {self.journal.failure}")
        ask, limits = message.ask, self.capacity
        request = request_of(ask, self.tokenizer, limits.capacity, limits.max_sequences, limits.adapters)
        moment = now()
        deadline = None if ask.deadline_seconds is None else moment + ask.deadline_seconds
        record = self.ledger.accept(request, body_of(request), moment, deadline, ask.lease_seconds)
        self.record(record)
        num_choices = request.sampling.n
        accepted = Accepted(request.id, num_choices, len(request.prompt))
        self.unanswered.append((from_, request.id, record is not None, accepted))
        if message.listener:
            had: Had | None = None if message.wants_whole else (0,) * num_choices
            self.polls.join(message.listener, request.id, had)
            if record is None:
                self.touched.add(request.id)  # it may have something to tell already

    def hear(self, message: Events) -> None:
        try:
            events = unpack_events(message.packed)
        except BadRequest:
            self.ledger.counts["malformed_messages"] += 1
            return
        record, touched = self.ledger.tell(str(message.model), events, message.packed, now())
        self.record(record)
        self.touched |= touched

    def cancel(self, request_id: str, tenant: str) -> bool:
        epoch = self.ledger.find(request_id, tenant).epoch
        record = self.ledger.cancel(request_id, now(), tenant)
        if record is None:
            return False
        self.record(record)
        self.tell_ended(request_id, epoch)
        return True

    def tell_ended(self, request_id: str, epoch: str | None) -> None:
        self.touched.add(request_id)
        if epoch is not None:
            cast(Pid.parse(epoch), Abort((request_id,)))

    # Writing, then sending

    def record(self, record: Record | None) -> None:
        if record is not None:
            assert self.journal is not None
            self.journal.append(to_plain(record))

    def flush_soon(self) -> None:
        """Where a write is dear, let those that wait behind this message share it."""
        if self.config.level == "kill-safe":
            self.flush()
        elif not self.is_flushing:
            self.is_flushing = True
            send(me(), _Flush())

    def flush(self) -> None:
        """Write what was decided; then answer, send and wake."""
        assert self.journal is not None
        attempts = self.ledger.dispatch(now())
        for attempt in attempts:
            self.record(attempt)
        unanswered, self.unanswered = self.unanswered, []
        try:
            self.journal.commit(is_lasting=bool(unanswered))
        except JournalFailing as refusal:
            self.take_back(unanswered, refusal)
        else:
            for from_, _, _, accepted in unanswered:
                reply(from_, accepted)
        for attempt in attempts:
            self.send_attempt(attempt)
        if self.touched:
            touched, self.touched = self.touched, set()
            for from_, parts in self.polls.wake(touched, now()):
                reply(from_, parts)

    def take_back(self, unanswered: list[tuple[From, str, bool, Accepted]], refusal: JournalFailing) -> None:
        for _, request_id, is_new, _ in unanswered:
            if is_new:
                self.ledger.withdraw(request_id)
        for from_, request_id, _, accepted in unanswered:
            reply(from_, accepted if request_id in self.ledger.entries else refusal)

    def send_attempt(self, attempt: Attempted) -> None:
        entries = [self.ledger.entries[name] for name in attempt.ids if name in self.ledger.entries]
        packed = tuple(pack_request(entry.to_send()) for entry in entries)
        if packed:
            cast(Pid.parse(attempt.epoch), Run(me(), packed, attempt.is_alone))

    # Model servers

    def meet(self, up: ModelUp) -> None:
        self.models[up.model] = self.capacity = up
        if up.model not in self.watched:
            self.watched.add(up.model)
            monitor(up.model)
        self.ledger.model_up(str(up.model))

    def model_down(self, down: Down) -> None:
        epoch = str(down.pid)
        self.models.pop(down.pid, None)
        self.watched.discard(down.pid)
        board = self.ledger.boards.get(epoch)
        ids = set() if board is None else set(board.ids)
        if not is_abnormal(down.reason):
            self.record(self.ledger.release(epoch, now()))
            self.ledger.model_busy(epoch)
            return
        alone = self.alone_in(epoch)
        self.record(self.ledger.model_down(epoch, alone, now()))
        entries = [self.ledger.entries[name] for name in ids]
        if alone is not None or any(entry.is_suspect for entry in entries):
            cast(self.config.models_supervisor, Forgive(down.pid))
        self.touched |= {entry.id for entry in entries if entry.is_finished}

    def alone_in(self, epoch: str) -> str | None:
        """Who ran alone in a model server that died; "" if it was another partition's request."""
        seen = glance(progress_path(self.directory, epoch))
        if seen is None or seen.alone == NOBODY:
            return None
        board = self.ledger.boards.get(epoch)
        return next((name for name in (board.ids if board else ()) if seen.runs_alone(name)), "")

    # Time

    def tick(self) -> None:
        moment = now()
        for from_ in self.polls.expire(moment):
            reply(from_, [])
        for ended, epoch in list(self.ledger.expire(moment)):
            self.record(ended)
            self.tell_ended(ended.id, epoch)
        self.ledger.forget(moment)
        self.flush()
        self.compact_if_needed()
        self.num_ticks += 1
        if self.num_ticks % 5 == 0:
            self.root.look()

    def compact_if_needed(self) -> None:
        """Begin a new journal when most of this one is past, and when this one can no longer be written."""
        journal = self.journal
        assert journal is not None
        is_large = journal.num_bytes > max(SMALL_JOURNAL_BYTES, 4 * journal.num_compacted_bytes)
        if not is_large and journal.failure is None:
            return
        try:
            journal.compact(to_plain(record) for record in self.ledger.snapshot(now()))
        except JournalFailing as refusal:
            log.warning("%s: %s", me(), refusal.message)

    def stats(self) -> RequestServerStats:
        if self.journal is None:
            return RequestServerStats(False, False, 0, 0, 0, 0, None, 0, (), (), (), 0, None, {})
        entries = self.ledger.entries.values()
        return RequestServerStats(
            is_open=True,
            is_draining=self.is_draining,
            num_living=sum(not entry.is_finished for entry in entries),
            num_kept=sum(entry.is_finished for entry in entries),
            num_on_board=sum(entry.epoch is not None for entry in entries),
            owed_tokens=self.ledger.load.owed_tokens,
            tokens_per_second=self.ledger.load.pace.rate(),
            polls=len(self.polls),
            models=tuple(map(str, self.models)),
            active_models=tuple(board.epoch for board in self.ledger.active_boards()),
            adapters=self.capacity.adapters if self.capacity is not None else (),
            journal_bytes=self.journal.num_bytes,
            journal_failure=self.journal.failure,
            counts=dict(self.ledger.counts),
        )


def clock_name() -> str:
    """Which machine, and which of its lives, the monotonic clock belongs to."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{time.time() - time.monotonic():.0f}"
