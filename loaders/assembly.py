"""Tensors by name -> Weights, each with the shape that the config gives it. Knows no file format."""

from typing import Protocol

import mlx.core as mx

from engine.config import ModelConfig, module_sizes
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
    sizes = module_sizes(config)

    def linear(name: str) -> Linear:
        path = f"{prefix}.{BLOCK_OF[name]}{name}"
        num_in, num_out = sizes[name]
        weight = source.matrix(path, (num_out, num_in))
        return Linear(weight, source.vector(f"{path}.bias", num_out) if source.has_bias(path) else None)

    has_head_norms = config.architecture == "qwen3"
    return Layer(
        input_layernorm=source.vector(f"{prefix}.input_layernorm.weight", config.hidden_size),
        post_attention_layernorm=source.vector(f"{prefix}.post_attention_layernorm.weight", config.hidden_size),
        q_norm=source.vector(f"{prefix}.self_attn.q_norm.weight", config.head_dim) if has_head_norms else None,
        k_norm=source.vector(f"{prefix}.self_attn.k_norm.weight", config.head_dim) if has_head_norms else None,
        **{name: linear(name) for name in LINEAR_MODULES},
    )
