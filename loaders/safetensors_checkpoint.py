"""SafetensorsCheckpoint: tensors of the names and shapes that a model wants, weight/scales/biases triplets made one.

Knows the names that MLX and transformers write. Knows nothing of a model's structure.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import mlx.core as mx

from engine.quantized import AFFINE_BITS, AFFINE_GROUPS, FLOAT_FORMATS, Mode, QuantizedTensor
from engine.refusal import BrokenFile
from loaders.config import CheckpointConfig
from loaders.progress import OnProgress, Progress
from loaders.quantization import Format
from loaders.safetensors import TensorEntry, TensorFile
from loaders.shards import find_tensors

FLOATS = ("F32", "F16", "BF16")
# What some exporters write beside the weights: rotary frequencies, which follow from the config.
DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


class SafetensorsCheckpoint:
    """All tensors of a directory by name; each is looked at once, and what nobody looked at is reported."""

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig,
        on_progress: OnProgress,
        read: Callable[[TensorFile, str], mx.array] = TensorFile.__getitem__,
    ) -> None:
        self.directory = directory
        self._read_from = read
        self._config = config
        self._on_progress = on_progress
        self._file_of = find_tensors(directory)
        self._unread = {name for name in self._file_of if not name.endswith(DERIVED)}
        self._num_read = 0
        self._num_bytes = sum(file.header.num_bytes for file in self.files())

    def __getitem__(self, name: str) -> mx.array:
        """One tensor as it is stored."""
        return self._file_of[name][name]

    def files(self) -> Iterator[TensorFile]:
        yield from {id(file): file for file in self._file_of.values()}.values()

    def vector(self, name: str, size: int) -> mx.array:
        entry = self._entry(name)
        if entry.shape != (size,) or entry.dtype not in FLOATS:
            raise self._misfit(name, f"{size} floats", entry)
        return self._read(name)

    def matrix(self, path: str, shape: tuple[int, int]) -> mx.array:
        if f"{path}.scales" in self._file_of:
            return self._quantized(path, shape)
        entry = self._entry(f"{path}.weight")
        if entry.shape != shape or entry.dtype not in FLOATS:
            raise self._misfit(f"{path}.weight", f"floats of shape {shape}", entry)
        return self._read(f"{path}.weight")

    def has_bias(self, path: str) -> bool:
        return path.rpartition(".")[2] in self._config.biased

    def finish(self) -> None:
        """Refuse a checkpoint with tensors that the model has no place for."""
        if self._config.model.tie_word_embeddings:  # some write the tied head as well
            self._unread -= {f"lm_head.{part}" for part in ("weight", "scales", "biases")}
        if self._unread:
            first = min(self._unread)
            others = f" and {len(self._unread) - 1} more" if len(self._unread) > 1 else ""
            architecture = self._config.model.architecture
            raise BrokenFile(f"{self.directory} has tensors that a {architecture} model does not: {first}{others}")

    def _quantized(self, path: str, shape: tuple[int, int]) -> QuantizedTensor:
        weight, scales = self._entry(f"{path}.weight"), self._entry(f"{path}.scales")
        packing = self._format(path, shape, weight, scales)
        rows, columns = shape
        if columns % packing.group_size:
            raise BrokenFile(f"{self.directory}: {path} of shape {shape} has no groups of {packing.group_size}")
        words, groups = columns * packing.bits // 32, columns // packing.group_size
        if weight.shape != (rows, words) or weight.dtype != "U32":
            wanted = f"words of shape {(rows, words)}, for {packing.bits} bits and shape {shape}"
            raise self._misfit(f"{path}.weight", wanted, weight)
        scale_types = FLOATS if packing.mode == "affine" else ("U8",)
        parts = ("scales", "biases") if packing.mode == "affine" else ("scales",)
        for part in parts:
            entry = self._entry(f"{path}.{part}")
            if entry.shape != (rows, groups) or entry.dtype not in scale_types:
                raise self._misfit(f"{path}.{part}", f"{'/'.join(scale_types)} of shape {(rows, groups)}", entry)
        tensor = QuantizedTensor(
            self._read(f"{path}.weight"),
            *(self._read(f"{path}.{part}") for part in parts),
            *(() if packing.mode == "affine" else (None,)),
            bits=packing.bits,
            group_size=packing.group_size,
            mode=packing.mode,
        )
        mx.eval(tensor)  # an array made of another may be a copy: the original goes before the next is read
        return tensor

    def _format(self, path: str, shape: tuple[int, int], weight: TensorEntry, scales: TensorEntry) -> Format:
        """What the config says; where it does not name the module and the shapes say otherwise, what they say."""
        quantization = self._config.quantization
        wanted = quantization.format_of(path)
        if wanted is None:
            raise BrokenFile(f"{self.directory} has {path}.scales, but its config.json does not quantize that module")
        if path in quantization.exceptions:
            return wanted
        return format_of_shapes(shape[1], weight, scales) or wanted

    def _entry(self, name: str) -> TensorEntry:
        file = self._file_of.get(name)
        if file is None:
            raise BrokenFile(f"{self.directory} lacks the tensor {name}")
        return file.header.tensors[name]

    def _read(self, name: str) -> mx.array:
        self._unread.discard(name)
        array = self._read_from(self._file_of[name], name)
        self._num_read += array.nbytes
        self._on_progress(Progress("loading weights", self._num_read, self._num_bytes))
        return array

    def _misfit(self, name: str, wanted: str, entry: TensorEntry) -> BrokenFile:
        return BrokenFile(f"{self.directory}: {name} is {entry.dtype} of shape {entry.shape}; {wanted} is wanted")


def format_of_shapes(columns: int, weight: TensorEntry, scales: TensorEntry) -> Format | None:
    """The only format that a matrix of so many columns can have with these words and scales, if there is one."""
    if not (len(weight.shape) == len(scales.shape) == 2 and scales.shape[1]):
        return None
    bits, group_size = weight.shape[1] * 32 // columns, columns // scales.shape[1]
    if scales.dtype != "U8":
        return Format(bits, group_size) if bits in AFFINE_BITS and group_size in AFFINE_GROUPS else None
    return next(
        (Format(*sizes, cast(Mode, mode)) for mode, sizes in FLOAT_FORMATS.items() if sizes == (bits, group_size)), None
    )
