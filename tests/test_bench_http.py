"""What the benchmark of the door counts: tokens that were made."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.http_clients import rate

ANSWER = b"""HTTP/1.1 200 OK\r\nConnection: close\r\n\r
data: {"choices":[{"text":"a story"}]}

data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}

data: [DONE]

"""
REFUSAL = b'HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n{"error":{}}'


@contextmanager
def served(*answers: bytes) -> Iterator[int]:
    """A port where clients get these in turn."""
    left, ports = list(answers), list[int]()
    is_up, loop, over = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split()[0]))
        writer.write(left.pop())
        await writer.drain()
        writer.close()

    async def serve() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            ports.append(server.sockets[0].getsockname()[1])
            is_up.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    is_up.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def test_a_stream_counts_for_the_tokens_that_its_server_says_it_made() -> None:
    with served(ANSWER, ANSWER) as port:
        assert rate(port, 2, 5) > 0


@pytest.mark.parametrize(("other", "tokens"), [(REFUSAL, 5), (ANSWER, 6)])
def test_tokens_that_were_not_made_are_not_counted(other: bytes, tokens: int) -> None:
    with served(ANSWER, other) as port, pytest.raises(AssertionError, match="did not bring"):
        rate(port, 2, tokens)
