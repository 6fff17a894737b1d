"""Merging: the streams of several prompts as one, in the order in which things happen."""

import asyncio
from collections.abc import AsyncIterator

from deploy.http.backend import Part
from engine.refusal import Refusal

QUEUED_BURSTS = 8


async def merged(streams: list[AsyncIterator[tuple[Part, ...]]]) -> AsyncIterator[tuple[int, tuple[Part, ...]]]:
    """The bursts of several streams as they come, each with its stream's number."""
    if len(streams) == 1:
        async for only in streams[0]:
            yield 0, only
        return
    bursts: asyncio.Queue[tuple[int, tuple[Part, ...] | Refusal | None]] = asyncio.Queue(QUEUED_BURSTS)

    async def pump(number: int) -> None:
        try:
            async for parts in streams[number]:
                await bursts.put((number, parts))
            await bursts.put((number, None))
        except Refusal as refusal:
            await bursts.put((number, refusal))

    pumps = [asyncio.ensure_future(pump(number)) for number in range(len(streams))]
    try:
        num_open = len(streams)
        while num_open:
            number, parts = await bursts.get()
            if isinstance(parts, Refusal):
                raise parts
            if parts is None:
                num_open -= 1
            else:
                yield number, parts
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
