"""Handle: the system for programs that know Ray and nothing of ours. Keywords come in, plain dicts go out.

    handle = ray.get_actor("genserve", namespace="genserve")
    ray.get(handle.generate.remote(prompt="Why is the sky blue?", max_tokens=60))["text"]
    for piece in handle.stream.remote(prompt="Tell me a story."):
        print(ray.get(piece)["text"], end="")

It holds nothing: the requests are with the request servers, and another handle can take up any of them by its id.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from actors.client import Client
from actors.genserver import GenServer, NoReply, Stop
from actors.node import enter, send_after
from actors.process import RayNode
from actors.public_actor import is_published, publish, withdraw
from actors.refusals import Overloaded
from actors.system_config import HANDLE, SystemConfig
from engine.completion import Piece
from engine.refusal import Refusal

PING_SECONDS = 1.0
SETTLE_SECONDS = 0.02  # between two looks whether all is answered
PARTING_SECONDS = 1.0  # that answers may take to leave when the system ends


class Handle:
    """The public actor. Expected trouble is a ValueError, "code: sentence", as nothing of ours is known out there."""

    def __init__(self, num_partitions: int) -> None:
        enter(RayNode())
        self.client = Client(num_partitions)
        self.num_open = 0  # calls that are not answered yet

    async def ping(self) -> bool:
        return True

    async def settle(self) -> None:
        """Come back when every call has its answer."""
        while self.num_open:
            await asyncio.sleep(SETTLE_SECONDS)

    async def generate(self, **words: Any) -> dict[str, Any]:
        """One whole answer: id, text, tokens, finish_reason, usage."""
        with self._answering():
            return (await self.client.generate_async(**words)).to_dict()

    async def stream(self, **words: Any) -> AsyncIterator[dict[str, Any]]:
        """What is new, piece by piece: id, position, text, tokens, and finish_reason in the last of each choice."""
        with self._answering():
            stream = await self.client.stream_async(**words)
            try:
                async for pieces in stream.bursts():
                    for piece in pieces:
                        yield piece_dict(stream.id, piece, words.get("n") or 1)
            except (asyncio.CancelledError, GeneratorExit):
                if words.get("id") is None:
                    await asyncio.to_thread(stream.close)
                else:  # whoever gave it the id may take it up again
                    stream.leave()
                raise

    async def batch(self, requests: Sequence[str | Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Many answers, in order, to texts, or to the keywords of each."""
        with self._answering():
            return [answer.to_dict() for answer in await self.client.batched_run_async(requests)]

    async def cancel(self, id: str) -> bool:
        """End a request; False if it had ended already."""
        with self._answering():
            return await self.client.cancel_async(id)

    async def stats(self) -> list[dict[str, Any]]:
        """One dict a partition."""
        return [asdict(found) for found in await asyncio.to_thread(self.client.stats)]

    @contextmanager
    def _answering(self) -> Iterator[None]:
        self.num_open += 1
        try:
            yield
        except Refusal as refusal:
            raise plain(refusal) from None
        finally:
            self.num_open -= 1


def plain(refusal: Refusal) -> ValueError:
    later = f"; come back in {refusal.retry_after_seconds:.1f} s" if isinstance(refusal, Overloaded) else ""
    return ValueError(f"{refusal.code}: {refusal.message}{later}")


def piece_dict(request_id: str, piece: Piece, num_choices: int) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": request_id,
        "position": piece.position,
        "text": piece.text,
        "tokens": list(piece.tokens),
    }
    if num_choices > 1:
        told["choice"] = piece.choice
    if piece.reasoning:
        told["reasoning"] = piece.reasoning
    if piece.logprob is not None:
        told["logprob"] = piece.logprob._asdict()
    if piece.finish_reason is not None:
        told["finish_reason"] = piece.finish_reason
    return told


class HandleKeeper(GenServer):
    """Sees to it that the public actor is there: its name has no epoch, so no supervisor could."""

    trap_exit = True

    def init(self, config: SystemConfig) -> None:
        self.actor = publish(HANDLE, Handle, config.partitions)
        send_after(PING_SECONDS, "ping")

    def handle_info(self, message: object) -> NoReply | Stop:
        if not is_published(HANDLE):
            return Stop(("handle_died",))
        send_after(PING_SECONDS, "ping")
        return NoReply()

    def terminate(self, reason: object) -> None:
        withdraw(HANDLE, PARTING_SECONDS)
