"""genserve: language models served the way Elixir serves processes.

import genserve

model, tokenizer = genserve.load_model("smollm2"), genserve.load_tokenizer("smollm2")
serving = genserve.generation(model, tokenizer)
print(serving.run("Why is the sky blue?", max_tokens=60).text)
"""

from collections.abc import Mapping
from pathlib import Path

from deploy.inline import Generation
from engine.adapter import Adapter
from engine.completion import Completion, Piece
from engine.engine import EngineOptions
from engine.refusal import Refusal
from engine.weights import Model
from loaders.adapters import load_adapter
from loaders.checkpoint import load_model
from loaders.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "Completion",
    "EngineOptions",
    "Generation",
    "Piece",
    "Refusal",
    "generation",
    "load_adapter",
    "load_model",
    "load_tokenizer",
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
