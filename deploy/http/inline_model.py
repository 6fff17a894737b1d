"""A model by its name -> an InlineBackend around it, for `genserve serve --inline`. Loads on the engine's thread."""

from functools import cache
from pathlib import Path

from deploy.http.adapter_folder import AdapterFolder
from deploy.http.inline_backend import InlineBackend
from engine.engine import Engine
from engine.kernels.choose import choose
from engine.kernels.table import Kernels
from engine.options import EngineOptions
from engine.weights import Model
from loaders.adapters import load_adapter
from loaders.checkpoint import load_model
from loaders.tokenizer import Tokenizer

DEFAULT_OPTIONS = EngineOptions()


def inline_model(
    source: str | Path,
    tokenizer: Tokenizer,
    *,
    name: str | None = None,
    adapters: Path | None = None,
    options: EngineOptions = DEFAULT_OPTIONS,
) -> InlineBackend:
    """Serve a model from this process; `adapters` is the directory that adapters are loaded from."""

    @cache
    def loaded() -> tuple[Model, Kernels]:
        model = load_model(source)
        return model, choose(model.config, model.weights, options.block_size, expand=options.expand)

    def build() -> Engine:
        model, kernels = loaded()
        return Engine(model, kernels, options, tokenizer.vocabulary)

    folder = None if adapters is None else AdapterFolder(adapters)
    return InlineBackend(
        name or Path(source).name,
        build,
        tokenizer.vocabulary,
        folder,
        lambda path, config: load_adapter(path, model_config=config),
    )
