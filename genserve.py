"""genserve: language models served the way Elixir serves processes.

import genserve

model, tokenizer = genserve.load_model("smollm2"), genserve.load_tokenizer("smollm2")
serving = genserve.generation(model, tokenizer)
print(serving.run("Why is the sky blue?", max_tokens=60).text)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.inline import Generation
from engine.adapter import Adapter
from engine.completion import Completion, Piece
from engine.options import EngineOptions
from engine.refusal import Refusal
from engine.weights import Model
from loaders.adapters import load_adapter
from loaders.checkpoint import load_model
from loaders.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from actors.client import Client

__all__ = [
    "Completion",
    "EngineOptions",
    "Generation",
    "Piece",
    "Refusal",
    "connect",
    "generation",
    "load_adapter",
    "load_model",
    "load_tokenizer",
    "start",
]


def generation(
    model: Model,
    tokenizer: Tokenizer,
    adapters: Mapping[str, Adapter | str | Path] | None = None,
    options: EngineOptions = EngineOptions(),
) -> Generation:
    """A serving in this process: `.run(prompt, **sampling)` and `.stream(prompt, **sampling)`."""
    loaded = {
        name: adapter if isinstance(adapter, Adapter) else load_adapter(adapter, model_config=model.config)
        for name, adapter in (adapters or {}).items()
    }
    return Generation(model, tokenizer, loaded, options)


def start(source: str | Path, **settings: Any) -> Client:
    """A supervised system around a model, on Ray, and a client: `.generate`, `.stream`, `.batched_run`, `.cancel`.

    `start("smollm2", adapters={"voice": "./my-voice"}, replicas=1, spares=1)`
    """
    from actors import system  # Ray takes a second to import, and not everyone needs it

    return system.start(source, **settings)


def connect(address: str = "auto", tenant: str = "") -> Client:
    """A client of the system that runs already."""
    from actors import system

    return system.connect(address, tenant)
