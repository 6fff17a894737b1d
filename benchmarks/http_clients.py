"""Clients that do nothing but count."""

import asyncio
import json
import re
import time
from typing import Any

PROMPT = "The sea is"
PATH = "/v1/completions"
TAIL = 1024  # bytes of a stream, which its usage and its end are within


async def stream(port: int, body: bytes) -> tuple[float, int, float]:
    """One stream: seconds to its first token, how many the server says it made, and seconds in all."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(head(body) + body)
    first, tail = 0.0, b""
    while chunk := await reader.read(65536):
        first = first or (time.perf_counter() - began if b'"text":"' in chunk else 0.0)
        tail = (tail + chunk)[-TAIL:]
        if b"[DONE]" in tail:
            break
    writer.close()
    usage = re.search(rb'"completion_tokens":(\d+)', tail)
    return first, int(usage[1]) if usage else 0, time.perf_counter() - began


def head(body: bytes) -> bytes:
    lines = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    )
    return f"{lines}Connection: close\r\n\r\n".encode()


def body_of(tokens: int, **more: Any) -> bytes:
    words = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
    return json.dumps({**words, "stream": True, "stream_options": {"include_usage": True}}).encode()


def rate(port: int, streams: int, tokens: int) -> float:
    """Tokens a second over so many streams at once."""

    async def run() -> float:
        began = time.perf_counter()
        results = await asyncio.gather(*(stream(port, body_of(tokens)) for _ in range(streams)))
        seconds = time.perf_counter() - began
        short = sum(count != tokens for _, count, _ in results)
        assert not short, f"{short} of {streams} streams did not bring {tokens} tokens"
        return streams * tokens / seconds

    return asyncio.run(run())
