"""ModelChoice: which model is served, and how it is brought into memory. Plain data, as it crosses processes.

What it names is imported where it is needed: a supervisor passes a choice on and never sees an array.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.options import EngineOptions

READ_ADAPTER = "actors.model_loading:read_adapter"


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model with its adapters. The rest are paths to functions, so that a test can name its own."""

    source: str
    options: EngineOptions = field(default_factory=EngineOptions)
    adapters: tuple[tuple[str, str], ...] = ()  # name, folder
    make_engine: str = "actors.model_loading:make_engine"
    make_tokenizer: str = "actors.tokenizer_loading:make_tokenizer"
    read_adapter: str = READ_ADAPTER


def function_at(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
