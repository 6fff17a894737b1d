"""Answers: what a batch needs of whatever answers its questions; and a running system as such."""

import asyncio
from typing import Any, ClassVar, Protocol

from actors.client import Client
from actors.refusals import Overloaded
from deploy.jobs.asked import Words
from engine.completion import Completion
from engine.refusal import Refusal


class Unanswered(Refusal):
    """The question was taken, and ended before its answer did."""

    code: ClassVar[str] = "unanswered"


class Answers(Protocol):
    """Takes the words of `Client.generate`. A question that cannot be answered raises its Refusal."""

    async def answer(self, words: Words) -> Completion: ...


class ClientAnswers:
    """Asks a system of processes. Where it is full, the question waits its turn."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def answer(self, words: Words) -> Completion:
        plain: dict[str, Any] = dict(words)
        while True:
            try:
                return whole(await self._client.generate_async(**plain))
            except Overloaded as full:
                await asyncio.sleep(full.retry_after_seconds)


def whole(completion: Completion) -> Completion:
    """The completion, if all of its choices came to their own end."""
    for choice in completion.choices:
        if choice.finish_reason in ("error", "abort"):
            raise Unanswered(choice.message or "the question was withdrawn before its answer was complete")
    return completion
