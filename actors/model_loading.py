"""What model servers and request servers load when they start."""

from pathlib import Path
from typing import Any

from actors.model_choice import ModelChoice
from engine.adapter import Adapter
from engine.engine import Engine
from engine.kernels.choose import choose
from engine.vocabulary import Vocabulary
from engine.weights import Model
from loaders.adapters import load_adapter
from loaders.checkpoint import load_model
from loaders.tokenizer import load_tokenizer


def make_engine(choice: ModelChoice) -> Engine:
    """The model in memory, with an engine around it. MLX binds it to the thread that calls this."""
    model = load_model(choice.source)
    kernels = choose(model.config, model.weights, choice.options.block_size, expand=choice.options.expand)
    return Engine(model, kernels, choice.options, lambda: make_tokenizer(choice).vocabulary)


def make_tokenizer(choice: ModelChoice) -> Any:
    return load_tokenizer(choice.source)


def read_adapter(path: str, model: Model) -> Adapter:
    return load_adapter(Path(path), model_config=model.config)


class ByteTokenizer:
    """Text as its bytes: for models without a tokenizer, as tests make them."""

    has_chat_template = False
    vocabulary = Vocabulary(tuple(bytes([value]) for value in range(256)))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return list(text.encode())


def bytes_tokenizer(choice: ModelChoice) -> ByteTokenizer:
    return ByteTokenizer()
