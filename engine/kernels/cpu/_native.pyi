"""The C++ extension; see native/bindings.cpp."""

from collections.abc import Sequence

import mlx.core as mx

mlx_version: str

class PackedMatrix:
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def num_bytes(self) -> int: ...

class Adapters:
    def set(self, layer: int, module: int, a: mx.array, b: mx.array, scale: mx.array, starts: mx.array) -> None: ...

class Decoder:
    def add_layer(
        self,
        weights: Sequence[PackedMatrix],
        biases: Sequence[mx.array | None],
        input_norm: mx.array,
        post_norm: mx.array,
        q_norm: mx.array | None,
        k_norm: mx.array | None,
    ) -> None: ...

def pack_quantized(words: mx.array, scales: mx.array, biases: mx.array, bits: int, group_size: int) -> PackedMatrix: ...
def pack_floats(values: mx.array) -> PackedMatrix: ...
def unwritten_like(array: mx.array) -> mx.array: ...
def forget(array: mx.array) -> None: ...
def multiply(x: mx.array, w: PackedMatrix) -> mx.array: ...
def multiply_back(x: mx.array, w: PackedMatrix) -> mx.array: ...
def look_up(w: PackedMatrix, indices: mx.array) -> mx.array: ...
def head(x: mx.array, rows: mx.array, norm: mx.array, eps: float, w: PackedMatrix) -> mx.array: ...
def draw(logits: mx.array, knobs: mx.array, is_greedy: bool) -> mx.array: ...
def make_adapters(num_layers: int) -> Adapters: ...
def make_decoder(
    hidden: int,
    intermediate: int,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    eps: float,
    window: int,
    block_size: int,
    wavelengths: mx.array,
    magnitude: float,
) -> Decoder: ...
def run(
    decoder: Decoder,
    first: int,
    last: int,
    x: mx.array,
    positions: mx.array,
    slots: mx.array,
    sequence_of: mx.array,
    block_tables: mx.array,
    caches: Sequence[mx.array],
    adapter_of: mx.array | None,
    adapters: Adapters | None,
) -> list[mx.array]: ...
def run_feed_forward(
    decoder: Decoder, layer: int, x: mx.array, adapter_of: mx.array | None, adapters: Adapters | None
) -> mx.array: ...
def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
