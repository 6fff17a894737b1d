"""What the door costs: streams against the bare engine, one client's first token, slow readers, abrupt departures.

    python -m benchmarks.http                   # smollm2 at 200 streams: minutes on a CPU
    python -m benchmarks.http --inline          # the door and the engine in one process, without Ray
    python -m benchmarks.http --model tiny --streams 50
    python -m benchmarks.http --only ceiling    # how many tokens a second the door itself can pass on

Server and clients are two processes, and a client does nothing but count, so the server's cost is what is measured;
where there are few cores the clients' share is taken from the server all the same. Slow readers stop reading at all:
what the kernels' buffers take is all they get.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from deploy.http.inline_backend import InlineBackend
from deploy.http.serve import allow_descriptors
from engine.completion import Usage
from engine.engine import Engine, EngineOptions
from engine.request import Request, Sampling

PROMPT = "The sea is"
PATH = "/v1/completions"
GREEDY = Sampling(max_tokens=2, temperature=0, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Settings:
    model: str
    streams: int
    tokens: int

    def options(self) -> EngineOptions:
        cache_bytes = 64 << 20 if self.model == "tiny" else EngineOptions().cache_bytes
        return EngineOptions(max_sequences=max(64, self.streams), cache_bytes=cache_bytes)


# The server, in a process of its own


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
    from actors.model_loading import ModelChoice
    from actors.system import start_system, stop
    from actors.system_config import SystemConfig
    from deploy.http.door import DoorConfig, door_spec

    with tempfile.TemporaryDirectory() as directory:
        choice = ModelChoice(place_of(settings, Path(directory)), settings.options())
        config = SystemConfig(choice, directory)
        port = free_port()
        start_system(replace(config, doors=(door_spec(config, DoorConfig(settings.model, port=port)),)))
        ready.send(f"http://127.0.0.1:{port}")
        while ready.recv() == "process":
            ready.send(sys.get_state("genserve.http")["process"])
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
        options = {"max_sequences": settings.options().max_sequences, "num_blocks": 8 * settings.streams}
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


# Clients


async def stream(port: int, body: bytes) -> tuple[float, int, float]:
    """One stream: seconds to its first token, its tokens, and seconds in all."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(head(body) + body)
    first, count, tail = 0.0, 0, b""
    while chunk := await reader.read(65536):
        first = first or (time.perf_counter() - began if b'"text":"' in chunk else 0.0)
        count += (tail + chunk).count(b"\ndata: {") - tail.count(b"\ndata: {")
        tail = chunk[-16:]
        if b"[DONE]" in tail + chunk[-32:]:
            break
    writer.close()
    return first, count, time.perf_counter() - began


def head(body: bytes) -> bytes:
    lines = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    return f"{lines}Connection: close\r\n\r\n".encode()


def body_of(tokens: int, **more: Any) -> bytes:
    return json.dumps(
        {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True, **more}
    ).encode()


def rate(port: int, streams: int, tokens: int) -> float:
    """Tokens a second over so many streams at once."""

    async def run() -> float:
        began = time.perf_counter()
        results = await asyncio.gather(*(stream(port, body_of(tokens)) for _ in range(streams)))
        assert sum(count for _, count, _ in results) >= streams, "every stream brought something"
        return streams * tokens / (time.perf_counter() - began)

    return asyncio.run(run())


# What is measured


def throughput(settings: Settings, port: int, rounds: int = 3) -> None:
    """The same requests in one batch, by the bare engine in a process of its own and over HTTP, in turns."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=run_bare, args=(settings, theirs), daemon=True)
    process.start()
    assert ours.recv() == "ready"
    alone, served = [], []
    for _ in range(rounds):
        ours.send("run")
        alone.append(ours.recv())
        served.append(rate(port, settings.streams, settings.tokens))
    process.kill()
    told("tokens a second, bare engine", median(alone))
    told(f"tokens a second, {settings.streams} streams", median(served))
    told("of the bare engine", median(there / here for there, here in zip(served, alone, strict=True)))


def run_bare(settings: Settings, orders: Connection) -> None:
    backend, tokenizer = made(settings, "engine")
    engine: Engine = backend._build()
    prompt = tuple(tokenizer.encode(PROMPT, special=True))

    def run(name: str, tokens: int) -> float:
        sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)
        for number in range(settings.streams):
            engine.add(Request(f"{name}-{number}", prompt, sampling))
        began = time.perf_counter()
        while engine.has_work:
            engine.step()
        return settings.streams * tokens / (time.perf_counter() - began)

    run("warm", 4)
    orders.send("ready")
    while orders.recv() == "run":
        orders.send(run(f"{time.time()}", settings.tokens))


def first_token(settings: Settings, port: int) -> float:
    """Milliseconds to one client's first token over HTTP, beyond those without it. The two are asked in turns."""

    async def run() -> float:
        backend, tokenizer = made(settings, "engine")
        prompt = tuple(tokenizer.encode(PROMPT, special=True))
        await backend.open()
        while await backend.why_not_ready():
            await asyncio.sleep(0.01)
        added = []
        for number in range(40):
            inside = await first_inside(backend, Request(f"{number}", prompt, GREEDY))
            added.append((await stream(port, body_of(GREEDY.max_tokens)))[0] - inside)
        await backend.close()
        return 1000 * median(added[5:])

    return asyncio.run(run())


async def first_inside(backend: InlineBackend, request: Request) -> float:
    """Seconds to the first token for who asks the backend itself."""
    began, first = time.perf_counter(), 0.0
    async for _ in await backend.stream(request):
        first = first or time.perf_counter() - began
    return first


def slow_readers(settings: Settings, port: int, count: int) -> float:
    """How much faster the others are without them: 1.0 is no difference."""
    without = rate(port, settings.streams, settings.tokens)
    body = body_of(64)
    readers = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for reader in readers:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(head(body) + body)
    wait_until_idle(port)
    with_them = rate(port, settings.streams, settings.tokens)
    for reader in readers:
        reader.close()
    return without / with_them


def departures(port: int, process_id: int, count: int) -> dict[str, Any]:
    """What abrupt departures leave behind in the server."""
    body = body_of(200)
    before = len(os.listdir(f"/proc/{process_id}/fd"))
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head(body) + body)
    wait_until_idle(port)
    time.sleep(1)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        system, metrics = client.get("/v1/system").json(), client.get("/metrics").text
    left = len(os.listdir(f"/proc/{process_id}/fd")) - before
    streams = next(line for line in metrics.splitlines() if line.startswith("genserve_streams "))
    return {
        "departures": count,
        "descriptors_left": max(0, left),
        "blocks_left": system["stats"]["engine"]["used_blocks"],
        "requests_left": len(system["running"]),
        "streams_left": float(streams.split()[1]),
    }


def wait_until_idle(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
        while client.get("/v1/system").json()["running"]:
            time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2", help='a model, or "tiny"')
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--slow", type=int, default=1000)
    parser.add_argument("--departures", type=int, default=2000)
    parser.add_argument("--inline", action="store_true")
    parser.add_argument("--only", choices=("ceiling", "throughput", "first", "slow", "departures"))
    arguments = parser.parse_args()
    allow_descriptors()
    settings = Settings(arguments.model, arguments.streams, arguments.tokens)
    if arguments.only in (None, "ceiling"):
        told(
            "tokens a second through the door alone",
            with_server(settings, "ceiling", lambda port, _: ceiling(settings, port)),
        )
    if arguments.only == "ceiling":
        return

    def measure(port: int, process_id: int) -> None:
        rate(port, min(8, settings.streams), 8)
        if arguments.only in (None, "throughput"):
            throughput(settings, port)
        if arguments.only in (None, "first"):
            told("ms added to one client's first token", first_token(settings, port))
        if arguments.only in (None, "slow"):
            told(
                f"others' slow-down by {arguments.slow} that do not read", slow_readers(settings, port, arguments.slow)
            )
        if arguments.only in (None, "departures"):
            told("after abrupt departures", departures(port, process_id, arguments.departures))

    with_server(settings, "engine" if arguments.inline else "system", measure)


def ceiling(settings: Settings, port: int) -> float:
    return max(rate(port, settings.streams, settings.tokens) for _ in range(3))


def with_server(settings: Settings, kind: str, work: Callable[[int, int], Any]) -> Any:
    """What the work returns; it is given the server's port and process id."""
    ours, theirs = multiprocessing.Pipe()
    is_system = kind == "system"
    process = multiprocessing.Process(
        target=serve_system if is_system else serve, args=(settings, kind, theirs), daemon=not is_system
    )
    process.start()
    port = int(ours.recv().rpartition(":")[2])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
        wait_until_ready(client)
    try:
        return work(port, process_of_door(ours) if is_system else process.pid or 0)
    finally:
        if is_system:
            ours.send("stop")
        else:
            process.kill()
        process.join()


def process_of_door(orders: Connection) -> int:
    orders.send("process")
    process_id: int = orders.recv()
    return process_id


def wait_until_ready(client: httpx.Client) -> None:
    while True:
        with suppress(httpx.TransportError):
            if client.get("/ready").status_code == 200:
                return
        time.sleep(0.05)


def told(what: str, value: Any) -> None:
    print(f"{what}: {value:.3f}" if isinstance(value, float) else f"{what}: {value}", flush=True)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
