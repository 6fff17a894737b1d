"""What a model server loads when it starts, and adapters later."""

from pathlib import Path

from actors.model_choice import ModelChoice
from actors.tokenizer_loading import make_tokenizer
from engine.adapter import Adapter
from engine.engine import Engine
from engine.kernels.choose import choose
from engine.weights import Model
from loaders.adapters import load_adapter
from loaders.checkpoint import load_model


def make_engine(choice: ModelChoice) -> Engine:
    """The model in memory, with an engine around it. MLX binds it to the thread that calls this."""
    model = load_model(choice.source)
    kernels = choose(model.config, model.weights, choice.options.block_size, expand=choice.options.expand)
    return Engine(model, kernels, choice.options, lambda: make_tokenizer(choice).vocabulary)


def read_adapter(path: str, model: Model) -> Adapter:
    return load_adapter(Path(path), model_config=model.config)
