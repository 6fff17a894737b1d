"""Tensors by name -> Weights, each with the shape that the config gives it. Knows no file format."""

from typing import Protocol

import mlx.core as mx

from engine.config import ModelConfig
from engine.weights import BLOCK_OF, LINEAR_MODULES, Layer, Linear, Weights


class TensorSource(Protocol):
    """What a checkpoint of any format can do: find a tensor by its safetensors name, check its shape, load it."""

    def vector(self, name: str, size: int) -> mx.array: ...

    def matrix(self, path: str, shape: tuple[int, int]) -> mx.array:
        """The weight of a module: a float array, or a QuantizedTensor that stands for this shape."""

    def has_bias(self, path: str) -> bool: ...


def assemble(config: ModelConfig, source: TensorSource) -> Weights:
    """All weights of a decoder, loaded one after the other."""
    embedding = (config.vocab_size, config.hidden_size)
    return Weights(
        embed_tokens=source.matrix("model.embed_tokens", embedding),
        layers=tuple(assemble_layer(config, source, f"model.layers.{index}") for index in range(config.num_layers)),
        norm=source.vector("model.norm.weight", config.hidden_size),
        lm_head=None if config.tie_word_embeddings else source.matrix("lm_head", embedding),
    )


def assemble_layer(config: ModelConfig, source: TensorSource, prefix: str) -> Layer:
    def linear(name: str) -> Linear:
        path = f"{prefix}.{BLOCK_OF[name]}{name}"
        shape = linear_shape(config, name)
        weight = source.matrix(path, shape)
        return Linear(weight, source.vector(f"{path}.bias", shape[0]) if source.has_bias(path) else None)

    has_head_norms = config.architecture == "qwen3"
    return Layer(
        input_layernorm=source.vector(f"{prefix}.input_layernorm.weight", config.hidden_size),
        post_attention_layernorm=source.vector(f"{prefix}.post_attention_layernorm.weight", config.hidden_size),
        q_norm=source.vector(f"{prefix}.self_attn.q_norm.weight", config.head_dim) if has_head_norms else None,
        k_norm=source.vector(f"{prefix}.self_attn.k_norm.weight", config.head_dim) if has_head_norms else None,
        **{name: linear(name) for name in LINEAR_MODULES},
    )


def linear_shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """The shape (out, in) of one of the seven linear modules."""
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    match name:
        case "q_proj":
            return query, config.hidden_size
        case "k_proj" | "v_proj":
            return key, config.hidden_size
        case "o_proj":
            return config.hidden_size, query
        case "gate_proj" | "up_proj":
            return config.intermediate_size, config.hidden_size
        case "down_proj":
            return config.hidden_size, config.intermediate_size
    raise KeyError(name)
