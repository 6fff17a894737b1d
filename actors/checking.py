"""Checking: what a system is made of, looked at before anything is started. Processes would find out one by one.

An adapter is read when somebody asks for it, so that one which is not there, or not for this model, would be refused to
each of its users. Here its files' heads are compared with the model's config; no weights are read.
"""

from pathlib import Path
from tempfile import TemporaryFile

from actors.model_choice import READ_ADAPTER, ModelChoice
from actors.system_config import SystemConfig
from engine.config import ModelConfig
from engine.refusal import BadRequest, Unsupported
from loaders.progress import ignore_progress
from loaders.sources import locate
from loaders.unreadable import reason


def check(config: SystemConfig) -> None:
    """The refusal that starting this system would come to, as far as that shows from outside."""
    check_directory(config.directory)
    if config.choice.adapters and config.choice.read_adapter == READ_ADAPTER:  # any other need not read files
        check_adapters(config.choice)


def check_directory(directory: str) -> None:
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=directory).close()
    except OSError as trouble:
        raise BadRequest(f"no journal can be kept in {directory}: {reason(trouble)}", "directory") from None


def check_adapters(choice: ModelChoice) -> None:
    """Each is there, and fits the model."""
    from loaders.adapters import describe_adapter, fits  # with MLX, which only a system's processes need otherwise

    model = model_config(locate(choice.source, ignore_progress))
    for _, path in choice.adapters:
        misfit = fits(describe_adapter(path), model)
        if misfit is not None:
            raise Unsupported(f"the adapter {path} does not fit the model: {misfit}")


def model_config(place: Path) -> ModelConfig:
    from loaders import config, gguf, gguf_config  # with MLX too

    return config.read_config(place).model if place.is_dir() else gguf_config.config_of(gguf.read_gguf(place)).model
