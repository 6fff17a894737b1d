"""Clients that do nothing but count."""

import asyncio
import json
import time
from typing import Any

PROMPT = "The sea is"
PATH = "/v1/completions"


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
