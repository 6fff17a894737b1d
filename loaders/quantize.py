"""A float checkpoint -> MLX's quantized format, tensor by tensor. Knows no arithmetic of its own.

The outline of the result comes first, from MLX arrays that are never computed: so the shards' headers can be written
before the tensors, and no more than one tensor is in memory. The directory takes its name when all is in it.
"""

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx

from engine.quantized import FLOAT_FORMATS, Mode, QuantizedTensor, check_format, quantize
from engine.refusal import BadRequest, BrokenFile, Unsupported
from loaders.assembly import assemble
from loaders.atomic_file import atomic_file
from loaders.config import read_config
from loaders.json_file import read_json
from loaders.progress import OnProgress, Progress, ignore_progress
from loaders.safetensors import SafetensorsWriter, TensorFile
from loaders.safetensors_checkpoint import SafetensorsCheckpoint
from loaders.shards import INDEX
from loaders.sources import locate
from loaders.unreadable import reason

MAX_SHARD_BYTES = 5 << 30
COPIED = ("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
          "chat_template.json", "*.jinja", "generation_config.json", "LICENSE*")  # fmt: skip

Outline = dict[str, mx.array]  # lazy arrays: names, types and shapes of tensors to come


def quantize_checkpoint(
    src: str | Path,
    dst: str | Path,
    bits: int | None = None,
    group_size: int | None = None,
    mode: Mode = "affine",
    on_progress: OnProgress = ignore_progress,
) -> Path:
    """Write the checkpoint `src`, a directory or a hub id, to the new directory `dst` with quantized matrices.

    Where nothing is said: 4 bits in groups of 64, or what the mode has.
    """
    usual_bits, usual_group = FLOAT_FORMATS.get(mode, (4, 64))
    bits, group_size = usual_bits if bits is None else bits, usual_group if group_size is None else group_size
    check_format(bits, group_size, mode)
    source, target = locate(src, on_progress), Path(dst)
    if not source.is_dir():
        raise Unsupported(f"{source} is a GGUF file; a directory of safetensors is wanted")
    if target.exists():
        raise BadRequest(f"{target} is there already; a new directory is wanted", "dst")
    job = Quantizing(source, bits, group_size, mode, on_progress)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        job.write(partial)
        partial.rename(target)
    except OSError as trouble:
        raise BrokenFile(f"{target} cannot be written: {reason(trouble)}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


class Quantizing:
    """One checkpoint on its way; owns nothing but the plan of what goes where."""

    def __init__(self, source: Path, bits: int, group_size: int, mode: Mode, on_progress: OnProgress) -> None:
        self.source = source
        self.format = (bits, group_size, mode)
        self._on_progress = on_progress
        config = read_config(source)
        if config.quantization.default is not None:
            raise Unsupported(f"{source} is quantized already; a checkpoint in floats is wanted")
        outline = SafetensorsCheckpoint(source, config, ignore_progress, TensorFile.outline)
        tensors = dict(assemble(config.model, outline).named())
        self._names = {name: self._parts(name, array) for name, array in tensors.items()}
        self._num_done, self._num_bytes = 0, sum(array.nbytes for array in tensors.values())
        outline.finish()
        if not any(len(parts) > 1 for parts in self._names.values()):
            raise Unsupported(f"{source} has no matrix whose rows divide into groups of {group_size}", "group_size")
        self._checkpoint = SafetensorsCheckpoint(source, config, ignore_progress)

    def write(self, directory: Path) -> None:
        shards = list(shards_of(self._names))
        files = shard_names(len(shards))
        for file, shard in zip(files, shards, strict=True):
            self._write_shard(directory / file, shard)
        if len(shards) > 1:
            total = sum(part.nbytes for parts in self._names.values() for part in parts.values())
            weight_map = {part: file for file, shard in zip(files, shards, strict=True) for part in flat(shard)}
            write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        for pattern in COPIED:
            for path in self.source.glob(pattern):
                shutil.copy(path, directory)
        bits, group_size, mode = self.format
        settings = {"group_size": group_size, "bits": bits, "mode": mode}
        config = read_json(self.source / "config.json")
        # Under both names, as mlx_lm writes it: transformers reads the second one.
        write_json(directory / "config.json", config | {"quantization": settings, "quantization_config": settings})

    def _write_shard(self, path: Path, shard: Mapping[str, Outline]) -> None:
        planned = {name: (array.dtype, array.shape) for name, array in flat(shard).items()}
        with atomic_file(path) as file:
            writer = SafetensorsWriter(file, planned, {"format": "mlx"})
            for name in shard:
                array = self._checkpoint[name]
                for part, content in self._parts(name, array).items():
                    writer.write(part, content)
                self._num_done += array.nbytes
                self._on_progress(Progress(f"quantizing {name}", self._num_done, self._num_bytes))
            writer.finish()

    def _parts(self, name: str, array: mx.array) -> Outline:
        """The tensors that one becomes: itself, or words, scales and biases."""
        bits, group_size, mode = self.format
        if array.ndim != 2 or array.shape[1] % group_size:
            return {name: array}
        quantized = quantize(array, bits, group_size, mode)
        return parts_of(name.removesuffix(".weight"), quantized)


def parts_of(path: str, tensor: QuantizedTensor) -> Outline:
    parts = {f"{path}.weight": tensor.packed, f"{path}.scales": tensor.scales}
    return parts if tensor.biases is None else parts | {f"{path}.biases": tensor.biases}


def shards_of(names: Mapping[str, Outline]) -> Iterator[dict[str, Outline]]:
    """Tensors in their order, in files of at most MAX_SHARD_BYTES; what becomes of one tensor stays together."""
    shard: dict[str, Outline] = {}
    num_bytes = 0
    for name, parts in names.items():
        size = sum(part.nbytes for part in parts.values())
        if shard and num_bytes + size > MAX_SHARD_BYTES:
            yield shard
            shard, num_bytes = {}, 0
        shard[name] = parts
        num_bytes += size
    yield shard


def shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def flat(shard: Mapping[str, Outline]) -> Outline:
    return {name: part for parts in shard.values() for name, part in parts.items()}


def write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")
