"""Adapters: directories of mlx_lm or PEFT -> Adapter, and back. Everything is checked before it meets a model.

adapter = load_adapter("adapters/posts", model_config=model.config)
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import mlx.core as mx
import numpy as np

from engine.adapter import Adapter, LowRank
from engine.config import ModelConfig
from engine.refusal import BadRequest, BrokenFile, Refusal, Unsupported, shown
from loaders.adapter_description import FORMATS, AdapterDescription, ModuleShape, Place, describe, format_of, misfit_of
from loaders.adapter_format import CONFIG_FILE, HALVES, Slot, bounded, finite, module_path
from loaders.atomic_file import atomic_file
from loaders.safetensors import open_tensors, read_header, save
from loaders.unreadable import reason


def load_adapter(path: str | Path, scale: float | None = None, *, model_config: ModelConfig | None = None) -> Adapter:
    """The adapter in a directory; `scale`, as it multiplies, replaces its own. Without a model no shape is compared."""
    path = Path(path).expanduser()
    if scale is not None:
        scale = finite_scale(scale)
    form = format_of(path)
    tensors = open_tensors(path / form.tensors_file)
    description = describe(form, path, tensors.header)
    if model_config is not None and (misfit := misfit_of(description.shapes, model_config)):
        raise Unsupported(f"the adapter {path} does not fit the model: {misfit}")
    named = {form.slot_of(name): name for name in tensors}
    modules = {}
    for (layer, module), shape in description.shapes.items():
        a, b = (tensors[named[Slot(layer, module, half)]] for half in HALVES)
        if form.is_transposed:
            a, b = mx.contiguous(a.T), mx.contiguous(b.T)
        modules[layer, module] = LowRank(a, b, shape.scale if scale is None else scale)
    check_finite(path, modules)
    return Adapter(modules, fingerprint(modules))


def save_adapter(
    path: str | Path, adapter: Adapter, format: Literal["mlx_lm", "peft"] = "mlx_lm", base: str | None = None
) -> None:
    """Write an adapter so that it loads as the same bits, the scale included."""
    path = Path(path).expanduser()
    if format not in FORMATS:
        raise BadRequest(f"an adapter is saved as {' or '.join(FORMATS)}; got {shown(format)}", "format")
    if not adapter.modules:
        raise BadRequest("the adapter changes no module; there is nothing to save", "adapter")
    form = FORMATS[format]
    config = json.dumps(form.config_of(adapter, base), indent=2).encode()
    tensors = {}
    for (layer, module), pair in sorted(adapter.modules.items()):
        for half, array in zip(HALVES, (pair.a, pair.b), strict=True):
            slot = Slot(layer, module, half)
            tensors[form.tensor_name(slot)] = mx.contiguous(array.T) if form.is_transposed else array
    try:
        path.mkdir(parents=True, exist_ok=True)
        save(path / form.tensors_file, tensors, form.metadata_of(adapter))
        with atomic_file(path / CONFIG_FILE) as file:
            file.write(config)
    except OSError as trouble:
        raise BrokenFile(f"the adapter cannot be written to {path}: {reason(trouble)}") from None


def describe_adapter(path: str | Path) -> AdapterDescription:
    """What an adapter is, by its config and its tensors' shapes."""
    path = Path(path).expanduser()
    form = format_of(path)
    return describe(form, path, read_header(path / form.tensors_file))


def fits(adapter: Adapter | AdapterDescription, model_config: ModelConfig) -> str | None:
    """Why an adapter does not fit a model; None where it does."""
    if isinstance(adapter, AdapterDescription):
        return misfit_of(adapter.shapes, model_config)
    shapes = {
        place: ModuleShape(pair.a.shape[0], pair.rank, pair.b.shape[1], pair.scale)
        for place, pair in adapter.modules.items()
    }
    return misfit_of(shapes, model_config)


def finite_scale(scale: float) -> float:
    try:
        return bounded(finite(scale, "scale"), f"scale is {shown(scale)}")
    except Refusal as refusal:
        raise BadRequest(refusal.message, "scale") from None


def check_finite(path: Path, modules: Mapping[Place, LowRank]) -> None:
    verdicts = {place: mx.isfinite(pair.a).all() & mx.isfinite(pair.b).all() for place, pair in modules.items()}
    mx.eval(verdicts, [(pair.a, pair.b) for pair in modules.values()])
    for place, is_finite in verdicts.items():
        if not is_finite.item():
            raise BrokenFile(f"{path}: {module_path(*place)} has numbers that are not finite")


def fingerprint(modules: Mapping[Place, LowRank]) -> str:
    """SHA-256 of every number that matters, the same for the same adapter in either format."""
    digest = hashlib.sha256()
    for place, pair in sorted(modules.items()):
        digest.update(f"{module_path(*place)} {float(pair.scale).hex()}\n".encode())
        for array in (pair.a, pair.b):
            digest.update(f"{array.dtype} {array.shape}\n".encode())
            bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
            digest.update(np.ascontiguousarray(np.asarray(bits)).data)
    return digest.hexdigest()
