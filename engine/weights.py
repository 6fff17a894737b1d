"""Weights: the tensors of a decoder, named as its checkpoint names them. Knows neither files nor arithmetic."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import mlx.core as mx

from engine.config import ModelConfig

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Linear:
    """`x @ weight.T + bias`; the weight, (out, in), is a float array or a QuantizedTensor."""

    weight: mx.array
    bias: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: an attention half, then a feed-forward half."""

    input_layernorm: mx.array
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    post_attention_layernorm: mx.array
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    q_norm: mx.array | None = None  # (head_dim,), Qwen3
    k_norm: mx.array | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors of a model; a tied head is the embedding itself, and `lm_head` is None."""

    embed_tokens: mx.array
    layers: tuple[Layer, ...]
    norm: mx.array
    lm_head: mx.array | None

    @property
    def head(self) -> mx.array:
        return self.embed_tokens if self.lm_head is None else self.lm_head

    def map(self, change: Callable[[mx.array], mx.array]) -> "Weights":
        """The same model with every tensor changed."""

        def change_part(part: mx.array | Linear | None) -> mx.array | Linear | None:
            if isinstance(part, Linear):
                return Linear(change(part.weight), None if part.bias is None else change(part.bias))
            return None if part is None else change(part)

        def change_layer(layer: Layer) -> Layer:
            changed: dict[str, Any] = {field.name: change_part(getattr(layer, field.name)) for field in fields(layer)}
            return replace(layer, **changed)

        return Weights(
            embed_tokens=change(self.embed_tokens),
            layers=tuple(map(change_layer, self.layers)),
            norm=change(self.norm),
            lm_head=None if self.lm_head is None else change(self.lm_head),
        )

    def named(self) -> Iterator[tuple[str, mx.array]]:
        """Every tensor with the name its checkpoint gives it."""
        yield "model.embed_tokens.weight", self.embed_tokens
        for index, layer in enumerate(self.layers):
            for name, value in ((field.name, getattr(layer, field.name)) for field in fields(layer)):
                prefix = f"model.layers.{index}.{BLOCK_OF.get(name, '')}{name}"
                if isinstance(value, Linear):
                    yield f"{prefix}.weight", value.weight
                    if value.bias is not None:
                        yield f"{prefix}.bias", value.bias
                elif value is not None:
                    yield f"{prefix}.weight", value
        yield "model.norm.weight", self.norm
        if self.lm_head is not None:
            yield "lm_head.weight", self.lm_head


BLOCK_OF = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"), "self_attn."),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp."),
}


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder's numbers and tensors. `fingerprint` tells one model's caches from another's."""

    config: ModelConfig
    weights: Weights
    fingerprint: str
