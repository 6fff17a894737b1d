"""The table of kernels: the coarse operations a machine must offer. One column for each kind of machine.

Coarse, because nine hundred small operations a token are what makes MLX slow where launching one is not free.
A column is built for one model's numbers; how it does an operation is its own affair, what comes out is not:
`portable` is the definition.
"""

from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.batch import Batch, Numbers
from engine.cache import KVCache, LayerCache
from engine.lora import LoraRows
from engine.options import CacheDtype
from engine.weights import Layer, Weights


class Tokens(Protocol):
    """Tokens of a step that a column carries out without MLX; they may still be on their way."""

    @property
    def size(self) -> int: ...

    def read(self) -> list[int]:
        """Wait for them."""

    def array(self) -> mx.array:
        """Wait for the step, so that MLX may read what it wrote; the tokens as MLX's."""


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """A step in which every row decodes, and draws from its logits as they are."""

    numbers: Numbers
    previous: mx.array | Tokens  # what the step before drew
    sources: NDArray[np.int32]  # (T,) which of these are the tokens that go in
    lora: LoraRows | None
    knobs: NDArray[np.float32]  # (T, 5), as `draw` takes them
    is_greedy: bool
    is_filtered: bool


class Kernels(Protocol):
    """One column. Activations are (T, hidden); everything is lazy, and evaluates inside MLX's graph."""

    name: str
    cache_dtype: CacheDtype  # how this machine likes keys and values best

    def prepare(self, weights: Weights) -> Weights:
        """Bring a model's tensors, once, to the form that the operations below take."""

    def embed(self, weights: Weights, tokens: mx.array) -> mx.array:
        """Rows of the embedding, (T, hidden)."""

    def warm_up(self, weights: Weights, cache: KVCache, max_rows: int, max_tokens: int) -> None:
        """Do what the first batches of so many decode rows, and tokens in all, would have to wait for."""

    def layers(self, x: mx.array, weights: Weights, cache: KVCache, batch: Batch, lora: LoraRows | None) -> mx.array:
        """Both halves of each layer in turn."""

    def attention(
        self, x: mx.array, layer: Layer, index: int, cache: LayerCache, batch: Batch, lora: LoraRows | None
    ) -> mx.array:
        """x + o(attend(rope(qkv(norm(x))))): writes the rows' keys and values, then attends to the cache."""

    def feed_forward(self, x: mx.array, layer: Layer, index: int, lora: LoraRows | None) -> mx.array:
        """x + down(silu(gate(norm(x))) * up(norm(x)))."""

    def logits(self, x: mx.array, weights: Weights, rows: NDArray[np.int32]) -> mx.array:
        """The head of some rows, (R, vocabulary), float32."""

    def draw(self, logits: mx.array, knobs: NDArray[np.float32], *, is_greedy: bool, is_filtered: bool) -> mx.array:
        """One token a row, (R,) int32, as `engine.sampling` defines it; `knobs` is (R, 5) float32."""

    def decode(self, weights: Weights, cache: KVCache, step: DecodeStep) -> Tokens | None:
        """Start a whole step in a way of the column's own; None if it has none for this one.

        What of MLX's came before is waited for. Nothing of MLX's may follow before somebody asks for the tokens' array.
        """

    def read(self, tokens: mx.array | Tokens) -> list[int]:
        """Wait for tokens that were drawn."""
