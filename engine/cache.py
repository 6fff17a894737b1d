"""KVCache: the arrays that hold keys and values, one pair a layer, cut into blocks of slots.

Knows no sequence: which block belongs to whom is the block pool's affair. Writing replaces an array by its
successor; nobody else may hold the old one, so that MLX gives its memory to the new one and nothing is copied.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from engine.config import ModelConfig
from engine.options import CacheDtype

MLX_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16, "int8": mx.int8}


class LayerCache:
    """One layer's keys and values; with int8, each (slot, head) vector has a scale of its own."""

    __slots__ = ("key_scales", "keys", "num_successors", "value_scales", "values")

    keys: mx.array  # (slots, kv_heads, head_dim)
    values: mx.array
    key_scales: mx.array | None  # (slots, kv_heads), int8 only
    value_scales: mx.array | None

    def __init__(self, num_slots: int, num_heads: int, head_dim: int, dtype: CacheDtype) -> None:
        shape = (num_slots, num_heads, head_dim)
        self.num_successors = 0  # of its arrays: whoever knows where they are looks again when it grows
        self.keys = mx.zeros(shape, MLX_DTYPES[dtype])
        self.values = mx.zeros(shape, MLX_DTYPES[dtype])
        is_scaled = dtype == "int8"
        self.key_scales = mx.zeros(shape[:2], mx.float32) if is_scaled else None
        self.value_scales = mx.zeros(shape[:2], mx.float32) if is_scaled else None

    def arrays(self) -> list[mx.array]:
        """All arrays, for evaluation."""
        held = (self.keys, self.values, self.key_scales, self.value_scales)
        return [array for array in held if array is not None]

    def write(self, slots: mx.array, keys: mx.array, values: mx.array) -> None:
        """Put the rows' keys and values, (T, kv_heads, head_dim), into their slots."""
        self.num_successors += 1
        if self.key_scales is None or self.value_scales is None:
            self.keys[slots] = keys.astype(self.keys.dtype)
            self.values[slots] = values.astype(self.values.dtype)
            return
        self.keys[slots], self.key_scales[slots] = to_int8(keys)
        self.values[slots], self.value_scales[slots] = to_int8(values)

    def read(self, slots: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """The keys and values of some slots, (*slots, kv_heads, head_dim)."""
        keys, values = self.keys[slots].astype(dtype), self.values[slots].astype(dtype)
        if self.key_scales is None or self.value_scales is None:
            return keys, values
        return (
            keys * self.key_scales[slots][..., None].astype(dtype),
            values * self.value_scales[slots][..., None].astype(dtype),
        )


class KVCache:
    """The pool's memory. Owned by the Engine."""

    def __init__(self, config: ModelConfig, num_blocks: int, block_size: int, dtype: CacheDtype) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        slots = num_blocks * block_size
        self.layers = [LayerCache(slots, config.num_kv_heads, config.head_dim, dtype) for _ in range(config.num_layers)]

    def arrays(self) -> list[mx.array]:
        return [array for layer in self.layers for array in layer.arrays()]

    @property
    def num_successors(self) -> int:
        return sum(layer.num_successors for layer in self.layers)

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Make each target hold what its source holds, before its owner writes on; all sources are read first."""
        last = {target: source for source, target in copies}  # a target given twice has its last owner
        sources, targets = self.slots_of(list(last.values())), self.slots_of(list(last))
        found = [array[sources] for array in self.arrays()]
        mx.eval(found)  # while a read is pending, a write has to copy the whole array
        for array, blocks in zip(self.arrays(), found, strict=True):
            array[targets] = blocks
        for layer in self.layers:
            layer.num_successors += 1

    def slots_of(self, blocks: list[int]) -> mx.array:
        slots = np.asarray(blocks, np.int32)[:, None] * self.block_size + np.arange(self.block_size, dtype=np.int32)
        return mx.array(slots.reshape(-1))


def block_bytes(config: ModelConfig, block_size: int, dtype: CacheDtype) -> int:
    """What one block costs in all layers together."""
    per_head = config.head_dim * MLX_DTYPES[dtype].size + (4 if dtype == "int8" else 0)
    return 2 * config.num_layers * block_size * config.num_kv_heads * per_head


def to_int8(x: mx.array) -> tuple[mx.array, mx.array]:
    """Each vector as int8 with the scale that brings its largest element to 127."""
    wide = x.astype(mx.float32)
    scales = mx.maximum(mx.abs(wide).max(axis=-1), 1e-20) / 127  # (T, kv_heads)
    return mx.round(wide / scales[..., None]).astype(mx.int8), scales
