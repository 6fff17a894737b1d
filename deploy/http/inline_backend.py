"""InlineBackend: an Engine on a thread of this process, behind the ledger that request servers keep. No Ray.

What is accepted is known to the ledger, so an engine that dies is built again and goes on where it was; only a death
of this whole process loses anything.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from actors.entry import Entry
from actors.ledger_options import LedgerOptions
from actors.refusals import Unavailable
from actors.running import Running, running_of
from deploy.http.adapter_folder import AdapterFolder
from deploy.http.backend import NO_TERMS, AdapterCard, ModelCard, Part, Process, Stats, Terms
from deploy.http.deaths import kind_of
from deploy.http.engine_thread import Born, Died, EngineThread, Refused, Report, Told
from deploy.http.inline_requests import InlineRequests
from deploy.http.turns import Turns
from engine.adapter import Adapter
from engine.completion import Completion
from engine.config import ModelConfig
from engine.engine import Engine
from engine.event import AdapterWanted, Event
from engine.refusal import Refusal, UnknownAdapter, Unsupported
from engine.request import Request
from engine.stats import EngineStats
from engine.vocabulary import Vocabulary

TICK_SECONDS = 0.1
NO_LIMITS = LedgerOptions()
Result = TypeVar("Result")
ReadAdapter = Callable[[Path, ModelConfig], Adapter]


class InlineBackend:
    """Serves one model from this process. Used on one event loop, between `open` and `close`.

    InlineBackend("smollm2", lambda: Engine(model, kernels, options, vocabulary), tokenizer.vocabulary)
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], Engine],
        vocabulary: Vocabulary,
        folder: AdapterFolder | None = None,
        read_adapter: ReadAdapter | None = None,
        options: LedgerOptions = NO_LIMITS,
    ) -> None:
        self.name = name
        self._build = build
        self._folder = folder
        self._read_adapter = read_adapter
        self._requests = InlineRequests(vocabulary, options)
        self._turns = Turns()
        self._adapters: dict[str, tuple[AdapterCard, Adapter]] = {}
        self._restarts: Counter[str] = Counter()
        self._last_reason: str | None = None
        self._engine: Engine | None = None  # for its constants; it belongs to its thread
        self._stats: EngineStats | None = None
        self._life = 0  # 0: between two lives
        self._is_gone = False

    async def open(self) -> None:
        loop = asyncio.get_running_loop()

        def report(what: Report) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(self._take, what)

        self._thread = EngineThread(self._build, report)
        self._ticking = loop.create_task(self._tick())

    async def close(self) -> None:
        self._ticking.cancel()
        await asyncio.to_thread(self._thread.stop)

    # Requests

    async def generate(self, request: Request, terms: Terms = NO_TERMS) -> Completion:
        await self._accept(request, terms)
        return await self._requests.completion(request.id, request.tenant)

    async def stream(self, request: Request, terms: Terms = NO_TERMS) -> AsyncIterator[tuple[Part, ...]]:
        await self._accept(request, terms)
        return self._requests.follow(request.id, request.tenant)

    async def follow(
        self, request_id: str, tenant: str, had: tuple[int, ...], *, again: bool = False
    ) -> AsyncIterator[tuple[Part, ...]]:
        return self._requests.follow(request_id, tenant, had, again=again)

    async def cancel(self, request_id: str, tenant: str) -> bool:
        if self._requests.ledger.cancel(request_id, time.monotonic(), tenant) is None:
            return False
        self._thread.abort(request_id)
        self._requests.wake({request_id})
        self._dispatch()
        return True

    async def _accept(self, request: Request, terms: Terms) -> None:
        await self.card()
        if self._is_gone:
            raise Unavailable(f"the engine is down: {self._last_reason}")
        if request.adapter is not None and request.adapter not in self._adapters:
            raise UnknownAdapter(f"no adapter {request.adapter[:64]!r} is loaded", "model")
        self._requests.accept(request, terms)
        self._dispatch()

    # Model and adapters

    async def card(self) -> ModelCard:
        if self._engine is None:
            raise Unavailable(await self.why_not_ready() or "the model is loading")
        engine = self._engine
        return ModelCard(self.name, engine.capacity, engine.model.fingerprint, engine.options.max_sequences)

    async def why_not_ready(self) -> str | None:
        if self._is_gone:
            return f"the engine is down: {self._last_reason}"
        if self._life == 0:
            return "the model is loading"
        return "the engine is suspended" if self._thread.is_suspended else None

    async def adapters(self) -> tuple[AdapterCard, ...]:
        return tuple(card for card, _ in self._adapters.values())

    async def loadable(self) -> tuple[str, ...]:
        return () if self._folder is None else self._folder.names()

    async def load_adapter(self, name: str, source: str) -> AdapterCard:
        if self._folder is None or self._read_adapter is None:
            raise Unsupported("this server was started without a directory of adapters", "lora_name")
        read, path = self._read_adapter, self._folder.path_of(source)

        def load(engine: Engine) -> Adapter:
            adapter = read(path, engine.model.config)
            engine.attach(name, adapter)
            return adapter

        adapter = await self._on_engine(load)
        card = AdapterCard(name, adapter.version, adapter.rank, adapter.num_bytes, time.time())
        self._adapters[name] = (card, adapter)
        return card

    async def unload_adapter(self, name: str) -> None:
        if name not in self._adapters:
            raise UnknownAdapter(f"no adapter {name[:64]!r} is loaded", "lora_name")
        del self._adapters[name]
        await self._on_engine(lambda engine: engine.detach(name))

    # Looking at it, and interfering

    async def stats(self) -> Stats:
        living = self._requests.living()
        num_running = sum(entry.has_started for entry in living)
        counts = dict(self._requests.ledger.counts)
        return Stats(self._stats, len(living) - num_running, num_running, dict(self._restarts), counts)

    async def running(self) -> tuple[Running, ...]:
        return tuple(map(running_of, self._requests.living()))

    async def tree(self) -> Process:
        is_up = self._life != 0
        state = "down" if self._is_gone else "running" if is_up else "restarting"
        if is_up and self._thread.is_suspended:
            state = "suspended"
        engine = Process("engine", state, sum(self._restarts.values()), self._last_reason)
        return Process("genserve serve --inline", "running", children=(engine,))

    async def suspend(self) -> None:
        self._thread.suspend()

    async def resume(self) -> None:
        self._thread.resume()

    async def kill_engine(self) -> None:
        self._thread.kill()

    # What the engine's thread tells

    def _take(self, report: Report) -> None:
        match report:
            case Born():
                self._begin(report)
            case Told(life, events, stats):
                self._stats = stats
                self._read(str(life), events)
            case Refused(life, request_id, refusal):
                self._requests.ledger.refused(str(life), request_id, refusal.code, refusal.message, time.monotonic())
                self._requests.wake({request_id})
            case Died():
                self._mourn(report)
        self._dispatch()

    def _begin(self, born: Born) -> None:
        self._life, self._engine, self._stats = born.life, born.engine, born.engine.stats()
        for name, (_, adapter) in self._adapters.items():
            self._attach(name, adapter)
        self._requests.ledger.model_up(str(born.life))

    def _mourn(self, died: Died) -> None:
        epoch, now = str(died.life), time.monotonic()
        self._restarts[kind_of(died.reason)] += 1
        self._last_reason = died.reason
        if died.reason == "killed":
            self._requests.ledger.release(epoch, now)  # no request is to blame
        aboard = [entry for entry in self._requests.living() if entry.epoch == epoch]
        self._requests.ledger.model_down(epoch, self._turns.alone, now)
        self._turns.clear()
        self._requests.wake(entry.id for entry in aboard)
        self._life, self._stats, self._is_gone = 0, None, died.is_last

    def _read(self, epoch: str, events: tuple[Event, ...]) -> None:
        for event in events:
            if isinstance(event, AdapterWanted) and event.name in self._adapters:
                self._attach(event.name, self._adapters[event.name][1])
        _, touched = self._requests.ledger.tell(epoch, events, b"", time.monotonic())
        self._requests.wake(touched)

    def _attach(self, name: str, adapter: Adapter) -> None:
        self._thread.do(lambda engine: engine.attach(name, adapter), lambda result, refusal: None)

    def _dispatch(self) -> None:
        """Send what the ledger says, each in its turn."""
        entries = self._requests.ledger.entries
        for attempt in self._requests.ledger.dispatch(time.monotonic()):
            self._turns.put([entries[request_id].to_send() for request_id in attempt.ids], attempt.is_alone)
        alone = self._turns.alone
        if alone is not None and (alone not in entries or not entries[alone].is_alone):
            self._turns.proved(alone)
        self._thread.add([request for request in self._turns.take() if is_wanted(entries.get(request.id))], self._life)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for request_id in self._requests.expire():
                self._thread.abort(request_id)
            self._dispatch()

    async def _on_engine(self, command: Callable[[Engine], Result]) -> Result:
        """What a command returns that runs on the engine's thread, or its refusal."""
        await self.card()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def settle(result: Any, refusal: Refusal | None) -> None:
            if not future.cancelled():
                future.set_exception(refusal) if refusal is not None else future.set_result(result)

        def tell(result: Any, refusal: Refusal | None) -> None:
            loop.call_soon_threadsafe(settle, result, refusal)

        self._thread.do(command, tell)
        return await future


def is_wanted(entry: Entry | None) -> bool:
    """Whether it has not ended while it waited for its turn."""
    return entry is not None and not entry.is_finished
