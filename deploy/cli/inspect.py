"""genserve inspect: what a model is made of, which kernels run it here, and which adapters fit."""

import argparse
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from deploy.cli.consoles import output
from deploy.cli.progress import shown_progress
from engine.kernels.choose import choose
from engine.options import EngineOptions
from engine.quantized import QuantizedTensor
from engine.refusal import BadRequest, Refusal
from engine.weights import Model
from loaders.adapter_description import format_of
from loaders.adapter_format import CONFIG_FILE
from loaders.adapters import describe_adapter, load_adapter
from loaders.checkpoint import load_model
from loaders.sources import locate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a directory, a .gguf file, a hub id or a short name")
    parser.add_argument("adapters", nargs="*", default=[], type=Path, help="adapters, or directories of them, to try")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    adapters = list(found(arguments.adapters))
    with shown_progress() as on_progress:
        place = locate(arguments.model, on_progress)
        model = load_model(place, on_progress=on_progress)
    report = describe(model, place) | {"adapters": [judge(path, model) for path in adapters]}
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


def describe(model: Model, place: Path) -> dict[str, Any]:
    config, tensors = model.config, dict(model.weights.named())
    with told() as notes:
        column = choose(config, model.weights, EngineOptions().block_size)
    return {
        "model": str(place),
        "architecture": config.architecture,
        "parameters": sum(num_parameters(tensor) for tensor in tensors.values()),
        "bytes": sum(num_bytes(tensor) for tensor in tensors.values()),
        "context": config.max_position,
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "heads": [config.num_heads, config.num_kv_heads, config.head_dim],
        "vocabulary": config.vocab_size,
        "tied_head": model.weights.lm_head is None,
        "quantization": quantization(model),
        "kernels": column.name,
        "kernels_note": "; ".join(notes),
        "fingerprint": model.fingerprint,
    }


@contextmanager
def told() -> Iterator[list[str]]:
    """What the program warns of meanwhile, so that it stands in the report and nowhere else."""
    notes: list[str] = []
    handler, log = logging.Handler(logging.WARNING), logging.getLogger("genserve")
    handler.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        yield notes
    finally:
        log.removeHandler(handler)


def num_parameters(tensor: Any) -> int:
    if isinstance(tensor, QuantizedTensor):
        rows, columns = tensor.logical_shape
        return rows * columns
    return int(tensor.size)


def num_bytes(tensor: Any) -> int:
    return tensor.num_bytes if isinstance(tensor, QuantizedTensor) else int(tensor.nbytes)


def quantization(model: Model) -> list[dict[str, Any]]:
    """How each part's matrices are kept; layers that are alike stand together."""
    parts: dict[str, dict[str, str]] = {}
    for name, tensor in model.weights.named():
        if tensor.ndim == 2:
            part, _, module = name.removesuffix(".weight").rpartition(".")
            part, module = (f"layer {part.split('.')[2]}", module) if ".layers." in name else (module, "")
            parts.setdefault(part, {})[module] = kept(tensor)
    grouped: list[dict[str, Any]] = []
    for part, modules in parts.items():
        if grouped and part.startswith("layer") and grouped[-1]["modules"] == modules:
            first = grouped[-1]["part"].split("-")[0].removeprefix("layers ").removeprefix("layer ")
            grouped[-1]["part"] = f"layers {first}-{part.removeprefix('layer ')}"
        else:
            grouped.append({"part": part, "modules": modules})
    return grouped


def kept(tensor: Any) -> str:
    if isinstance(tensor, QuantizedTensor):
        return f"{tensor.bits}-bit {tensor.mode}, groups of {tensor.group_size}"
    return str(tensor.dtype).removeprefix("mlx.core.")


def found(paths: list[Path]) -> Iterator[Path]:
    """Adapters among the paths, and in directories among them. A path that brings none is refused."""
    for path in map(Path, map(os.path.expanduser, paths)):
        if os.path.isfile(path / CONFIG_FILE):
            format_of(path)
            yield path
        elif os.path.isdir(path) and (inside := sorted(path.glob(f"*/{CONFIG_FILE}"))):
            yield from (file.parent for file in inside)
        else:
            raise BadRequest(f"{path} is neither an adapter nor a directory of adapters", "adapters")


def judge(path: Path, model: Model) -> dict[str, Any]:
    """What an adapter is, and why it does not fit, if it does not."""
    try:
        report = describe_adapter(path)
        load_adapter(path, model_config=model.config)
    except Refusal as refusal:
        return {"path": str(path), "fits": False, "reason": refusal.message}
    return {"path": str(path), "fits": True, "rank": report.rank, "scale": report.scale, "format": report.format}


def show(report: dict[str, Any]) -> None:
    say = partial(output.print, soft_wrap=True)
    heads, kv_heads, head_dim = report["heads"]
    say(report["model"], style="bold")
    lines = {
        "architecture": f"{report['architecture']}, {report['layers']} layers of {report['hidden']}, "
        f"{heads} heads of {head_dim} ({kv_heads} for keys and values)",
        "parameters": f"{report['parameters'] / 1e6:,.1f} million, {report['bytes'] / 1e6:,.1f} MB in memory",
        "context": f"{report['context']:,} tokens of {report['vocabulary']:,}",
        "head": "tied to the embedding" if report["tied_head"] else "its own",
        "kernels": report["kernels"] + (f" ({report['kernels_note']})" if report["kernels_note"] else ""),
        "fingerprint": report["fingerprint"],
    }
    for name, value in lines.items():
        say(f"  {name:<13} {value}")
    say("  quantization")
    for group in report["quantization"]:
        say(f"    {group['part']:<13} {'; '.join(summary(group['modules']))}")
    for adapter in report["adapters"]:
        verdict = "fits" if adapter["fits"] else f"does not fit: {adapter['reason']}"
        say(f"  adapter       {adapter['path']}: {verdict}")


def summary(modules: dict[str, str]) -> Iterator[str]:
    """Modules that are kept alike, together."""
    by_kind: dict[str, list[str]] = {}
    for module, kind in modules.items():
        by_kind.setdefault(kind, []).append(module)
    for kind, names in by_kind.items():
        yield kind if len(by_kind) == 1 else f"{', '.join(names)}: {kind}"
