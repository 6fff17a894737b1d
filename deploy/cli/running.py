"""Running: the system that a command is about, if one runs."""

import sys
from collections.abc import Iterator
from typing import Any

from actors.client import Client
from actors.model_choice import function_at
from actors.refusals import Unavailable
from actors.system import connect, running_config
from engine.completion import Piece
from loaders.prompt import Prompt, prompt_tokens


def running_client(address: str) -> Client | None:
    """A client of the system that runs there; None, after a sentence that says so, if nothing runs."""
    try:
        return connect(address)
    except Unavailable as refusal:
        print(f"genserve: nothing runs: {refusal.message}", file=sys.stderr)
        return None


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
