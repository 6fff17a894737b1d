"""The servers that `benchmarks.http` asks: the whole system, one process, and a door with nothing behind it."""

import asyncio
import multiprocessing
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx

from deploy.http.serve import allow_descriptors
from engine.completion import Usage
from engine.options import EngineOptions
from engine.request import Request


@dataclass(frozen=True, slots=True)
class Settings:
    model: str
    streams: int
    tokens: int
    crowd: int = 0  # streams beside them

    @property
    def places(self) -> int:
        return max(64, self.streams + self.crowd)

    def options(self) -> EngineOptions:
        tiny_bytes = (64 << 20) + self.crowd * (1 << 20)
        cache_bytes = tiny_bytes if self.model == "tiny" else EngineOptions().cache_bytes
        return EngineOptions(max_sequences=self.places, cache_bytes=cache_bytes)


def serve(settings: Settings, kind: str, ready: Connection) -> None:
    """The door over an engine, or over a backend that makes tokens as fast as they are taken."""
    from deploy.http.app import build_app
    from deploy.http.serve import Server, config_of

    allow_descriptors()
    backend, tokenizer = made(settings, kind)
    server = Server(config_of(build_app(backend, tokenizer), port=0))
    server.started_at = ready.send
    server.run()


def serve_system(settings: Settings, kind: str, ready: Connection) -> None:
    """The whole system of processes, as `genserve serve` starts it, until this process is told to end."""
    from actors import sys
    from actors.chaos import process_id_of
    from actors.ledger_options import LedgerOptions
    from actors.model_choice import ModelChoice
    from actors.node import whereis
    from actors.system import start_system, stop
    from actors.system_config import SystemConfig
    from deploy.http.door_config import DoorConfig, door_spec

    with tempfile.TemporaryDirectory() as directory:
        choice = ModelChoice(place_of(settings, Path(directory)), settings.options())
        usual = LedgerOptions()
        limits = replace(
            usual,
            max_choices_on_board=max(settings.places, usual.max_choices_on_board),
            max_owed_tokens=usual.max_owed_tokens + 4096 * settings.crowd,
        )
        config = SystemConfig(choice, directory, limits=limits)
        port = free_port()
        start_system(replace(config, doors=(door_spec(config, DoorConfig(settings.model, port=port)),)))
        ready.send(f"http://127.0.0.1:{port}")
        with suppress(EOFError):  # who gave the orders is gone
            while ready.recv() == "processes":
                model = whereis(config.model_names[0])
                assert model is not None
                processes = {"door": sys.get_state("genserve.http")["process"], "model server": process_id_of(model)}
                ready.send(processes)
        stop()


def place_of(settings: Settings, directory: Path) -> str:
    if settings.model != "tiny":
        return settings.model
    from tests.tiny import write_checkpoint
    from tests.tiny_tokenizer import write_tokenizer

    checkpoint = write_checkpoint(
        directory / "tiny", "llama", {"group_size": 32, "bits": 4}, max_position_embeddings=2048
    )
    return str(write_tokenizer(checkpoint))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def made(settings: Settings, kind: str) -> tuple[Any, Any]:
    from tests.http_world import tiny_backend, tiny_tokenizer

    if kind == "ceiling":
        return Endless(), tiny_tokenizer()
    if settings.model == "tiny":
        num_blocks = 8 * settings.streams + 64 * settings.crowd
        options = {"max_sequences": settings.places, "num_blocks": num_blocks}
        return tiny_backend(context=2048, **options), tiny_tokenizer()
    from deploy.http.inline_model import inline_model
    from loaders.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(settings.model)
    return inline_model(settings.model, tokenizer, options=settings.options()), tokenizer


class Endless:
    """Every request gets a token in each round of the event loop."""

    def __new__(cls) -> Any:
        from tests.http_world import ScriptedBackend, tiny_tokenizer

        class Rounds(ScriptedBackend):
            async def bursts(self, request: Request, had: tuple[int, ...] | None = None) -> AsyncIterator[Any]:
                from engine.completion import Transcript
                from engine.event import TokenEvent

                transcript = Transcript(request, tiny_tokenizer().vocabulary)
                last = request.sampling.max_tokens - 1
                for position in range(last + 1):
                    reason = "length" if position == last else None
                    yield (transcript.add(TokenEvent(request.id, 0, position, 97, reason)),)
                    await asyncio.sleep(0)
                yield (Usage(len(request.prompt), last + 1),)

        return Rounds()


def with_server(settings: Settings, kind: str, work: Callable[[int, dict[str, int]], Any]) -> Any:
    """What the work returns; it is given the server's port, and the ids of the processes that answer."""
    is_system = kind == "system"
    with child(serve_system if is_system else serve, settings, kind, ends_itself=is_system) as (process, orders):
        port = int(orders.recv().rpartition(":")[2])
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            wait_until_ready(client, process)
        return work(port, processes_of(orders) if is_system else {"server": process.pid or 0})


@contextmanager
def child(run: Callable[..., None], *given: Any, ends_itself: bool = False) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process, and our end of its orders: the other is its alone, so who waits for its words hears of its death."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=run, args=(*given, theirs), daemon=not ends_itself)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        if not ends_itself:
            process.kill()
        ours.close()
        process.join()


def processes_of(orders: Connection) -> dict[str, int]:
    orders.send("processes")
    processes: dict[str, int] = orders.recv()
    return processes


def wait_until_ready(client: httpx.Client, process: BaseProcess) -> None:
    while process.is_alive():
        with suppress(httpx.TransportError):
            if client.get("/ready").status_code == 200:
                return
        time.sleep(0.05)
    raise EOFError("the server ended before it could serve")
