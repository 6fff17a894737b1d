"""What the door costs: streams against the bare engine, one client's first token, slow readers, abrupt departures.

    python -m benchmarks.http                   # smollm2 at 200 streams: minutes on a CPU
    python -m benchmarks.http --inline          # the door and the engine in one process, without Ray
    python -m benchmarks.http --model tiny --streams 50
    python -m benchmarks.http --only ceiling    # how many tokens a second the door itself can pass on

Server and clients are two processes, and a client does nothing but count, so the server's cost is what is measured;
where there are few cores the clients' share is taken from the server all the same. Slow readers stop reading at all:
what the kernels' buffers take is all they get. What they cost is measured while their answers are being made, beside
as many that read and are otherwise the same.
"""

import argparse
import asyncio
import multiprocessing
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

from benchmarks.command_line import at_least, told_in_a_sentence
from benchmarks.http_clients import PROMPT, body_of, head, rate, stream
from benchmarks.http_held import departures, held, looked, memory_of, wait_until_idle
from benchmarks.http_servers import Settings, child, made, with_server
from deploy.http.inline_backend import InlineBackend
from deploy.http.serve import allow_descriptors
from engine.engine import Engine
from engine.request import Request, Sampling
from loaders.progress import ignore_progress
from loaders.sources import locate

CROWD_TOKENS = 1500
GREEDY = Sampling(max_tokens=2, temperature=0, ignore_eos=True)


def throughput(settings: Settings, port: int, rounds: int = 3) -> None:
    """The same requests in one batch, by the bare engine in a process of its own and over HTTP, in turns."""
    alone, served = [], []
    with child(run_bare, settings) as (_, orders):
        assert orders.recv() == "ready"
        for _ in range(rounds):
            orders.send("run")
            alone.append(orders.recv())
            served.append(rate(port, settings.streams, settings.tokens))
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
            outside, count, _ = await stream(port, body_of(GREEDY.max_tokens))
            assert count == GREEDY.max_tokens, "it was answered"
            added.append(outside - inside)
        await backend.close()
        return 1000 * median(added[5:])

    return asyncio.run(run())


async def first_inside(backend: InlineBackend, request: Request) -> float:
    """Seconds to the first token for who asks the backend itself."""
    began, first = time.perf_counter(), 0.0
    async for _ in await backend.stream(request):
        first = first or time.perf_counter() - began
    return first


def slow_readers(settings: Settings, port: int, processes: dict[str, int], rounds: int = 2) -> None:
    """Others' rate beside a crowd that reads and beside one that does not, while it is being answered."""
    door = processes.get("door", processes.get("server", 0))
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for is_reading in (True, False):
            before = memory_of(door)
            with crowd(port, settings.crowd, is_reading=is_reading):
                rates[is_reading].append(rate(port, settings.streams, settings.tokens))
                num_left = held(port, {})["streams"]
                kilobytes = (memory_of(door) - before) / 1024 / settings.crowd
            wait_until_idle(port)
            told(
                f"tokens a second beside {settings.crowd} that {'read' if is_reading else 'do not'}",
                rates[is_reading][-1],
            )
            told("   streams still open then, and the door's KB for each", f"{num_left:.0f}, {kilobytes:.1f}")
    ratios = [without / beside for beside, without in zip(rates[True], rates[False], strict=True)]
    told("others' rate beside those who do not read, of that beside those who do", median(ratios))


@contextmanager
def crowd(port: int, count: int, *, is_reading: bool) -> Iterator[None]:
    """So many streams that go on for as long as this is entered, in a process of their own."""
    with child(run_crowd, port, count, is_reading) as (_, orders):
        assert orders.recv() == "asked"
        begun = set[str]()  # the first may have ended when the last are let in
        while len(begun) < count:
            begun |= {row["id"] for row in looked(port)["running"] if row["generated_tokens"]}
            time.sleep(0.2)
        yield


def run_crowd(port: int, count: int, is_reading: bool, orders: Connection) -> None:
    allow_descriptors()
    body = body_of(CROWD_TOKENS)

    async def read_all() -> None:
        streams = [asyncio.ensure_future(stream(port, body)) for _ in range(count)]
        orders.send("asked")
        await asyncio.gather(*streams)

    if is_reading:
        asyncio.run(read_all())
        return
    readers = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for reader in readers:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.sendall(head(body) + body)
    orders.send("asked")
    orders.recv()  # until it is ended


@told_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help='a model, or "tiny"')
    parser.add_argument("--streams", type=at_least(1), default=200)
    parser.add_argument("--tokens", type=at_least(1), default=64)
    parser.add_argument("--slow", type=at_least(1), default=1000)
    parser.add_argument("--departures", type=at_least(1), default=2000)
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
    if arguments.model != "tiny":
        locate(arguments.model, ignore_progress)
    kind = "engine" if arguments.inline else "system"

    def measure(port: int, processes: dict[str, int]) -> None:
        rate(port, min(8, settings.streams), 8)
        if arguments.only in (None, "throughput"):
            throughput(settings, port)
        if arguments.only in (None, "first"):
            told("ms added to one client's first token", first_token(settings, port))
        if arguments.only in (None, "departures"):
            told("after abrupt departures", departures(port, processes, arguments.departures))

    if arguments.only != "slow":
        with_server(settings, kind, measure)
    if arguments.only in (None, "slow"):
        crowded = replace(settings, crowd=arguments.slow)
        with_server(crowded, kind, lambda port, processes: slow_readers(crowded, port, processes))


def ceiling(settings: Settings, port: int) -> float:
    return max(rate(port, settings.streams, settings.tokens) for _ in range(3))


def told(what: str, value: Any) -> None:
    print(f"{what}: {value:.3f}" if isinstance(value, float) else f"{what}: {value}", flush=True)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
