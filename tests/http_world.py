"""What tests of the HTTP door share: a tiny model behind a real socket, and a backend that does as it is told."""

import asyncio
import json
import math
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import uvicorn

from actors.ledger_options import LedgerOptions
from actors.running import Running
from deploy.http.adapter_folder import AdapterFolder
from deploy.http.app import build_app
from deploy.http.backend import (
    NO_TERMS,
    AdapterCard,
    Backend,
    ModelCard,
    Part,
    Process,
    Stats,
    Terms,
)
from deploy.http.inline_backend import InlineBackend
from deploy.http.keys import NO_KEYS, Keys
from deploy.http.serve import Server, config_of
from engine.completion import Completion, Piece, Transcript, Usage
from engine.engine import Engine
from engine.event import ChoiceEnded, Event, PromptScored, TokenEvent, TokenLogprob
from engine.limits import Capacity
from engine.request import Request
from engine.vocabulary import Vocabulary
from loaders.adapters import load_adapter
from loaders.tokenizer import Tokenizer, load_tokenizer
from tests.engines import FOUR_BIT, quickest, tiny_engine, tiny_model
from tests.tiny import write_checkpoint
from tests.tiny_tokenizer import write_tokenizer

MODEL = "tiny"


@cache
def tiny_tokenizer(**config: Any) -> Tokenizer:
    """Bytes as tokens, with a chat template: `tiny_tokenizer()`."""
    with TemporaryDirectory() as directory:
        write_checkpoint(directory, "llama")
        return load_tokenizer(write_tokenizer(directory, **config))


class Pace:
    """How far an engine may go: a test lets it take some steps, and knows that it stands still behind them."""

    def __init__(self) -> None:
        self._num_steps = math.inf
        self._changed = threading.Condition()

    def allow(self, num_steps: float = math.inf) -> None:
        """So many steps from now on."""
        with self._changed:
            self._num_steps = num_steps
            self._changed.notify_all()

    def kept_by(self, engine: Engine) -> None:
        """Make an engine wait before each step until it may take it."""
        step = engine.step

        def paced() -> list[Event]:
            with self._changed:
                self._changed.wait_for(lambda: self._num_steps > 0)
                self._num_steps -= 1
            return step()

        engine.step = paced  # type: ignore[method-assign]


def tiny_backend(
    adapters: Path | None = None,
    limits: LedgerOptions | None = None,
    context: int = 512,
    pace: Pace | None = None,
    ends: bool = True,
    **options: Any,
) -> InlineBackend:
    """A tiny model in this process, which ends texts by itself or not; `options` are the engine's."""
    changes = {"max_position_embeddings": context, **({} if ends else {"eos_token_id": ()})}

    def build() -> Engine:
        # Made where it is used: MLX binds what is computed to a thread.
        engine = tiny_engine(model=tiny_model("llama", FOUR_BIT, **changes), column=quickest(), **dict(options))
        engine.vocabulary = tiny_tokenizer().vocabulary
        if pace is not None:
            pace.kept_by(engine)
        return engine

    return InlineBackend(
        MODEL,
        build,
        tiny_tokenizer().vocabulary,
        None if adapters is None else AdapterFolder(adapters),
        lambda path, config: load_adapter(path, model_config=config),
        limits or LedgerOptions(),
    )


@dataclass(frozen=True, slots=True)
class Served:
    """A door that is open."""

    url: str
    port: int
    backend: Any
    client: httpx.Client

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return self.client.post(path, json=body, **more)

    def chat(self, text: str = "Hi", **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"messages": messages, "max_tokens": 8, "temperature": 0, **fields})

    def complete(self, prompt: Any = "Once", **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0, **fields})

    def raw(self, data: bytes, timeout: float = 5.0) -> bytes:
        """What the server says to these bytes before it closes, or falls silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            connection.sendall(data)
            return read_all(connection)


@contextmanager
def served(backend: Backend, keys: Keys = NO_KEYS, hosts: tuple[str, ...] = (), **config: Any) -> Iterator[Served]:
    """The whole door around a backend, on a port of its own."""
    app = build_app(backend, tiny_tokenizer(), keys, hosts)
    settings: uvicorn.Config = config_of(app, port=0)
    settings.timeout_graceful_shutdown = 1
    for name, value in config.items():
        setattr(settings, name, value)
    server, address = Server(settings), list[str]()
    started = threading.Event()

    def note(url: str) -> None:
        address.append(url)
        started.set()

    server.started_at = note
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(20), "the server did not start"
    # No proxies are asked for and no certificates are read, which takes longer than most tests.
    client = httpx.Client(base_url=address[0], timeout=20, trust_env=False, verify=False)
    try:
        wait_until_ready(client)
        yield Served(address[0], int(address[0].rpartition(":")[2]), backend, client)
    finally:
        client.close()
        server.should_exit = True
        thread.join(20)


def wait_until_ready(client: httpx.Client) -> None:
    """Until it serves, or says that it wants a key."""
    pause = threading.Event()
    for _ in range(500):
        if client.get("/ready").status_code != 503:
            return
        pause.wait(0.02)
    raise AssertionError("the server was never ready")


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except (TimeoutError, ConnectionError):
        pass
    return received


def events_of(text: str) -> list[dict[str, Any]]:
    """The payloads of a finished stream of server-sent events, [DONE] left out."""
    return [json.loads(data) for _, data in id_events_of(text) if data != "[DONE]"]


def id_events_of(text: str) -> list[tuple[str | None, str]]:
    """Each event's id and data."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            found.append((fields.get("id"), fields["data"]))
    return found


# A backend that does as it is told: it answers with words of its own, when the test lets it, or refuses.

CARD = ModelCard("scripted", Capacity(256, 4096), "0123456789abcdef0123", 16)


@dataclass
class ScriptedBackend:
    """Every token is the next byte of `text`; `gate` decides how many may be given, `refuse` what is raised instead."""

    text: str = "Hello, world"
    gate: threading.Semaphore | None = None
    refuse: Exception | None = None
    not_ready: str | None = None
    thinks: bool = False  # what stands between think tags is thought
    seen: list[Request] = field(default_factory=list)
    terms: list[Terms] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    is_open: bool = False

    async def open(self) -> None:
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def card(self) -> ModelCard:
        return CARD

    async def why_not_ready(self) -> str | None:
        return self.not_ready

    async def generate(self, request: Request, terms: Terms = NO_TERMS) -> Completion:
        self.accept(request, terms)
        transcript = Transcript(request, self.vocabulary)
        async for _ in self.pieces(request, transcript):
            pass
        return transcript.completion()

    async def stream(self, request: Request, terms: Terms = NO_TERMS) -> AsyncIterator[tuple[Part, ...]]:
        self.accept(request, terms)
        return self.bursts(request)

    async def follow(
        self, request_id: str, tenant: str, had: tuple[int, ...], *, again: bool = False
    ) -> AsyncIterator[tuple[Part, ...]]:
        request = next(request for request in self.seen if request.id == request_id)
        return self.bursts(request, (0,) * len(had) if again else had)

    @property
    def vocabulary(self) -> Vocabulary:
        return replace(tiny_tokenizer().vocabulary, splits_thoughts=self.thinks)

    def accept(self, request: Request, terms: Terms) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.seen.append(request)
        self.terms.append(terms)

    async def bursts(self, request: Request, had: tuple[int, ...] | None = None) -> AsyncIterator[tuple[Part, ...]]:
        transcript = Transcript(request, self.vocabulary)
        if request.sampling.prompt_logprobs is not None:
            yield (PromptScored(request.id, tuple(TokenLogprob(token, -1.0, ()) for token in request.prompt[1:])),)
        async for piece in self.pieces(request, transcript):
            if piece.position >= (had or (0,) * request.sampling.n)[piece.choice]:
                yield (piece,)
        yield (Usage(len(request.prompt), sum(map(len, transcript.tokens))),)

    async def pieces(self, request: Request, transcript: Transcript) -> AsyncIterator[Piece]:
        data = self.text.encode()[: request.sampling.max_tokens]
        for choice in range(request.sampling.n):
            for position, token in enumerate(data):
                while self.gate is not None and not self.gate.acquire(blocking=False):
                    await asyncio.sleep(0.002)
                logprob = None if request.sampling.logprobs is None else TokenLogprob(token, -0.5, ((token, -0.5),))
                reason = "stop" if position == len(data) - 1 else None
                piece = transcript.add(TokenEvent(request.id, choice, position, token, reason, logprob))  # type: ignore[arg-type]
                assert piece is not None
                yield piece
            if not data:
                ended = transcript.add(ChoiceEnded(request.id, choice, "length"))
                assert ended is not None
                yield ended

    async def cancel(self, request_id: str, tenant: str) -> bool:
        self.cancelled.append(request_id)
        return True

    async def adapters(self) -> tuple[AdapterCard, ...]:
        return ()

    async def loadable(self) -> tuple[str, ...]:
        return ()

    async def load_adapter(self, name: str, source: str) -> AdapterCard:
        if self.refuse is not None:
            raise self.refuse
        return AdapterCard(name, "1", 4, 100, 0.0)

    async def unload_adapter(self, name: str) -> None:
        if self.refuse is not None:
            raise self.refuse

    async def stats(self) -> Stats:
        return Stats(None)

    async def running(self) -> tuple[Running, ...]:
        return ()

    async def tree(self) -> Process:
        return Process("scripted", "running")

    async def suspend(self) -> None: ...

    async def resume(self) -> None: ...

    async def kill_engine(self) -> None: ...
