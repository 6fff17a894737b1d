"""Running: the system that a command is about, if one runs."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from actors.client import Client
from actors.finding import watched
from actors.model_choice import function_at
from actors.refusals import Unavailable
from actors.system import connect, is_connected, running_config
from engine.completion import Piece
from loaders.prompt import Prompt, prompt_tokens


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the system that runs there, and for as long as it does: the command ends with its Ray."""
    if is_connected():
        yield connect()
        return
    with watched(address, ray_died) as found:
        yield connect(found)


def ray_died() -> None:
    print("genserve: the Ray of the system that runs has died", file=sys.stderr)
    os._exit(2)  # whoever waits for that Ray would hold this program back


@contextmanager
def running_client(address: str) -> Iterator[Client | None]:
    """A client of the system that runs there; None, after a sentence that says so, if nothing runs."""
    with ExitStack() as stack:
        try:
            client = stack.enter_context(connected(address))
        except Unavailable as refusal:
            print(f"genserve: nothing runs: {refusal.message}", file=sys.stderr)
            client = None
        yield client


class RunningGeneration:
    """A running system with the face of a `Generation`: its model, its adapters by their names there."""

    def __init__(self, client: Client) -> None:
        choice = running_config().choice
        self._client = client
        self._tokenizer = function_at(choice.make_tokenizer)(choice)

    def prompt_tokens(self, prompt: Prompt, *, system: str | None = None) -> tuple[int, ...]:
        return prompt_tokens(self._tokenizer, prompt, system=system)

    def stream(self, prompt: Prompt, *, system: str | None = None, **words: Any) -> Iterator[Piece]:
        return iter(self._client.stream(self.prompt_tokens(prompt, system=system), **words))
