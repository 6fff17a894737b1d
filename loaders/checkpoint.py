"""A model's name or place -> Model. Knows which reader takes which file, and nothing of formats."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from engine.refusal import UnknownModel
from engine.weights import Model
from loaders.assembly import assemble
from loaders.config import read_config
from loaders.fingerprint import SAMPLE_BYTES, fingerprint
from loaders.gguf_checkpoint import load_gguf
from loaders.progress import OnProgress, ignore_progress
from loaders.safetensors_checkpoint import SafetensorsCheckpoint
from loaders.sources import locate


def load_model(source: str | Path, *, on_progress: OnProgress | None = None) -> Model:
    """Load a model from a directory, a .gguf file, a hub id or a short name.

    `load_model("smollm2")`, `load_model("lmstudio-community/Qwen3-8B-MLX-4bit")`
    """
    report = on_progress or ignore_progress
    path = locate(source, report)
    return load_directory(path, report) if path.is_dir() else load_gguf(path, report)


def load_directory(directory: Path, on_progress: OnProgress) -> Model:
    """Load config.json and the safetensors beside it, every tensor as it is stored."""
    if not (directory / "config.json").is_file():
        raise UnknownModel(f"{directory} has no config.json: a checkpoint's directory is wanted")
    config = read_config(directory)
    checkpoint = SafetensorsCheckpoint(directory, config, on_progress)
    weights = assemble(config.model, checkpoint)
    checkpoint.finish()
    return Model(config.model, weights, fingerprint(identity(directory, checkpoint)))


def identity(directory: Path, checkpoint: SafetensorsCheckpoint) -> Iterator[bytes | str | int]:
    yield hashlib.sha256((directory / "config.json").read_bytes()).digest()
    for file in checkpoint.files():
        yield file.header.digest
        yield file.header.num_bytes
        for name in file:
            yield file.sample(name, SAMPLE_BYTES)
