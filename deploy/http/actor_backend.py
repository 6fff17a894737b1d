"""ActorBackend: the system of processes, seen from the door. Asks request servers for answers, and all how they are.

What the door must answer at once (is it ready, what is the model, who lives) is looked up now and then and kept: a
model server in the middle of a step, or dead, keeps nobody waiting. While somebody watches it is looked up more often.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from actors import request_server, sys
from actors.adapter_book import AdapterBook, BookedAdapter
from actors.client import Client
from actors.exits import KILL, CallFailed
from actors.messages import Attach, Detach
from actors.node import call, exit, whereis
from actors.pid import Pid, Server
from actors.progress import BEAT_SECONDS
from actors.refusals import Unavailable
from actors.request_stats import RequestServerStats
from actors.running import Running
from actors.stream import Stream
from actors.system_config import ROOT, SystemConfig
from actors.tree import status
from deploy.http.actor_requests import bursts_of, chained, check_ending, scores_of, words_of
from deploy.http.actor_view import ANSWER_SECONDS, NO_VIEW, View, process_of, view_of
from deploy.http.adapter_folder import AdapterFolder
from deploy.http.backend import NO_TERMS, AdapterCard, ModelCard, Part, Process, Stats, Terms
from deploy.http.deaths import Deaths
from engine.completion import Completion
from engine.limits import Capacity
from engine.refusal import Refusal, Unsupported
from engine.request import Request
from loaders.tokenizer import Tokenizer

if TYPE_CHECKING:
    from loaders.adapter_description import AdapterDescription

LOOK_SECONDS = 0.5  # between two looks while somebody watches, or while not all is well
QUIET_SECONDS, QUIET_TREE_SECONDS = 1.0, 4.0  # and else: a look is a message to every process
WATCHED_SECONDS = 10.0  # since somebody asked for the tree
ATTACH_SECONDS, TOLD_SECONDS = 60.0, 10.0
FOLLOW_SECONDS = 0.25  # in which it shows whether there is anything to follow
NUM_THREADS = 32
WATCHDOG = f"{ROOT}.watchdog"
Result = TypeVar("Result")


class ActorBackend:
    """Serves the system that runs here. Used on one event loop, between `open` and `close`."""

    def __init__(
        self, config: SystemConfig, name: str, tokenizer: Tokenizer, folder: AdapterFolder | None = None
    ) -> None:
        self.config = config
        self.name = name
        self._tokenizer = tokenizer
        self._folder = folder
        self._book = AdapterBook(Path(config.directory), dict(config.choice.adapters))
        self._booked: dict[str, BookedAdapter] = {}
        self._cards: dict[str, AdapterCard] = {}
        self._clients: dict[str, Client] = {}  # by tenant
        self._running: dict[str, Running] = {}  # what came through this door, from the moment it came
        self._view = NO_VIEW
        self._tree = process_of(None)
        self._extra_look: asyncio.Future[None] | None = None
        self._deaths = Deaths()
        self._watched_at = -WATCHED_SECONDS
        self._threads = ThreadPoolExecutor(NUM_THREADS, "door")
        self._lookers = ThreadPoolExecutor(2, "looks")  # all others may wait for a request server that is away

    async def open(self) -> None:
        asyncio.get_running_loop().set_default_executor(self._threads)  # a submission waits in one of them
        self._looking = [asyncio.create_task(look()) for look in (self._keep_looking, self._keep_looking_at_tree)]

    async def close(self) -> None:
        for task in self._looking:
            task.cancel()
        for client in self._clients.values():
            client.close()

    # Requests

    async def generate(self, request: Request, terms: Terms = NO_TERMS) -> Completion:
        with self._noted(request):
            words = words_of(request, terms)
            completion = await self._client(request.tenant).generate_async(request.prompt, id=request.id, **words)
        for choice in completion.choices:
            check_ending(choice.finish_reason, choice.message)
        return completion

    async def stream(self, request: Request, terms: Terms = NO_TERMS) -> AsyncIterator[tuple[Part, ...]]:
        words = words_of(request, terms)
        stream = await self._client(request.tenant).stream_async(request.prompt, id=request.id, **words)
        return self._bursts(stream, request)

    async def follow(
        self, request_id: str, tenant: str, had: tuple[int, ...], *, again: bool = False
    ) -> AsyncIterator[tuple[Part, ...]]:
        stream = self._client(tenant).resume(request_id, (0,) * len(had) if again else had)
        bursts = self._bursts(stream, None)
        first = asyncio.ensure_future(anext(bursts))
        await asyncio.wait({first}, timeout=FOLLOW_SECONDS)
        if first.done() and first.exception() is not None:
            await first  # there is no such request, or not so much of it
        return chained(first, bursts)

    async def cancel(self, request_id: str, tenant: str) -> bool:
        return await self._client(tenant).cancel_async(request_id)

    async def _bursts(self, stream: Stream, request: Request | None) -> AsyncIterator[tuple[Part, ...]]:
        """The stream's news, with the prompt's scores where it is told from its beginning."""
        is_first = True
        try:
            with self._noted(request):
                async for pieces in bursts_of(stream):
                    self._count(stream.id, sum(len(piece.tokens) for piece in pieces))
                    yield (*(scores_of(stream) if is_first else ()), *pieces)
                    is_first = False
        finally:
            stream.leave()
        yield (stream.usage,)

    def _client(self, tenant: str) -> Client:
        if tenant not in self._clients:
            self._clients[tenant] = Client(self.config.partitions, tenant=tenant)
        return self._clients[tenant]

    @contextlib.contextmanager
    def _noted(self, request: Request | None):  # type: ignore[no-untyped-def]
        """Among those that run, as long as it does."""
        if request is None:
            yield
            return
        self._running[request.id] = Running(
            request.id, request.tenant, request.adapter, "waiting", len(request.prompt), 0, request.sampling.n
        )
        try:
            yield
        finally:
            self._running.pop(request.id, None)

    def _count(self, request_id: str, num_tokens: int) -> None:
        known = self._running.get(request_id)
        if known is not None:
            counted = known.generated_tokens + num_tokens
            self._running[request_id] = replace(known, state="running", generated_tokens=counted)

    # Model and adapters

    async def card(self) -> ModelCard:
        if not self._view.engines:
            await self._look_again()
        engines, options = self._view.engines.values(), self.config.choice.options
        if not engines:
            raise Unavailable(self._view.why_not_ready or "the model is loading")
        num_places = min(engine.num_blocks * engine.block_size for engine in engines)
        limits = (self._tokenizer.spec.max_tokens, options.max_context, num_places)
        capacity = Capacity(self._tokenizer.vocab_size, min(limit for limit in limits if limit is not None))
        return ModelCard(self.name, capacity, self._view.fingerprint, options.max_sequences)

    async def why_not_ready(self) -> str | None:
        return self._view.why_not_ready

    async def adapters(self) -> tuple[AdapterCard, ...]:
        return tuple([await self._card_of(name) for name in self._view.adapters])

    async def loadable(self) -> tuple[str, ...]:
        return () if self._folder is None else self._folder.names()

    async def load_adapter(self, name: str, source: str) -> AdapterCard:
        if self._folder is None:
            raise Unsupported("this server was started without a directory of adapters", "lora_name")
        path = self._folder.path_of(source)
        await self._tell_models(Attach(name, str(path)))
        await self._told(name, is_there=True)
        return await self._card_of(name)

    async def unload_adapter(self, name: str) -> None:
        await self._tell_models(Detach(name))
        await self._told(name, is_there=False)

    async def _card_of(self, name: str) -> AdapterCard:
        """What the book and the adapter's files say."""
        booked = self._booked.get(name)
        if booked is None:
            return AdapterCard(name, "unknown", 0, 0, 0.0)
        version = booked.version or hashlib.sha256(booked.path.encode()).hexdigest()
        if name not in self._cards or self._cards[name].version != version:
            rank = num_bytes = 0
            with contextlib.suppress(Refusal):
                found = await asyncio.to_thread(described, booked)
                rank, num_bytes = found.rank, found.num_bytes
            self._cards[name] = AdapterCard(name, version, rank, num_bytes, time.time())
        return self._cards[name]

    async def _tell_models(self, message: object) -> None:
        """Say it to every model server; the first refusal is everybody's."""
        for pid in self._models():
            refusal = await asking(partial(call, pid, message, ATTACH_SECONDS))
            if isinstance(refusal, Refusal):
                raise refusal

    async def _told(self, name: str, *, is_there: bool) -> None:
        """Until every request server has heard of it from its model servers: the next request may be for any."""
        until = time.monotonic() + TOLD_SECONDS
        while time.monotonic() < until:
            with contextlib.suppress(Unavailable):
                partitions = await asking(self._partitions, self._lookers)
                if all((name in found.adapters) == is_there for found in partitions):
                    break
            await asyncio.sleep(0.01)
        await self._look()

    def _partitions(self) -> list[RequestServerStats]:
        return [request_server.stats(name, ANSWER_SECONDS) for name in self.config.partition_names]

    # Looking at it, and interfering

    async def stats(self) -> Stats:
        return replace(self._view.stats, restarts=dict(self._deaths.by_reason))

    async def running(self) -> tuple[Running, ...]:
        """What came through this door, and what the request servers had when they were asked last."""
        self._watched_at = time.monotonic()
        rows = {row.id: row for row in self._view.running}
        for row in self._running.values():
            if row.id not in rows or rows[row.id].generated_tokens < row.generated_tokens:
                rows[row.id] = row
        return tuple(rows.values())

    async def tree(self) -> Process:
        self._watched_at = time.monotonic()
        return self._tree

    async def suspend(self) -> None:
        """The watchdog too: it takes a model server that makes no progress for one that hangs."""
        await self._tell_loops(sys.suspend, [WATCHDOG, *self._models()])

    async def resume(self) -> None:
        await self._tell_loops(sys.resume, self._models())
        await asyncio.sleep(2 * BEAT_SECONDS)  # until they have shown that they live
        await self._tell_loops(sys.resume, [WATCHDOG])

    async def _tell_loops(self, order: Callable[[Server], None], servers: Sequence[Server]) -> None:
        for server in servers:
            await asking(partial(order, server))
        await self._look()

    async def kill_engine(self) -> None:
        """The first model server that is at work. Was all suspended, it goes on: the next one would not know of it."""
        models = self._models()
        if models:
            exit(models[0], KILL)
            await self._tell_loops(sys.resume, [*models[1:], WATCHDOG])

    def _models(self) -> list[Pid]:
        return [pid for name in self.config.model_names if (pid := whereis(name)) is not None]

    async def _keep_looking(self) -> None:
        while True:
            with contextlib.suppress(Refusal):
                await self._look()
            await self._pause(QUIET_SECONDS)

    async def _look_again(self) -> None:
        """For who comes before any model was seen: one may be there since the last look. All that come share one."""
        if self._extra_look is None or self._extra_look.done():
            self._extra_look = asyncio.ensure_future(self._look())
        with contextlib.suppress(Refusal):
            await asyncio.shield(self._extra_look)

    async def _look(self) -> None:
        self._view, self._booked = await asking(self._seen, self._lookers)

    def _seen(self) -> tuple[View, dict[str, BookedAdapter]]:
        return view_of(self.config, self._view, is_watched=self._is_watched), self._book.read()

    async def _keep_looking_at_tree(self) -> None:
        """By itself: a supervisor that restarts a child answers when it is done."""
        while True:
            with contextlib.suppress(Unavailable):
                self._tree = process_of(await asking(status, self._lookers))
                self._deaths.look(self._tree)
            await self._pause(QUIET_TREE_SECONDS)

    async def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        await asyncio.sleep(LOOK_SECONDS)
        while time.monotonic() < until and self._view.why_not_ready is None and not self._is_watched:
            await asyncio.sleep(LOOK_SECONDS)

    @property
    def _is_watched(self) -> bool:
        return time.monotonic() - self._watched_at < WATCHED_SECONDS


async def asking(question: Callable[[], Result], threads: ThreadPoolExecutor | None = None) -> Result:
    """The answer of a process, beside the event loop; one that is dead is unavailable."""
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, question)
    except CallFailed as trouble:
        raise Unavailable(f"a process does not answer: {trouble}") from None


def described(booked: BookedAdapter) -> "AdapterDescription":
    """What its files say. Only then is MLX imported, of which the door has no other need."""
    from loaders.adapters import describe_adapter

    return describe_adapter(Path(booked.path))
