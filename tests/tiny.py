"""Tiny random checkpoints of every family, made on the spot. Knows the names and shapes of tensors, not our loaders.

What is written here is read by `mlx_lm.utils.load_model` and by `loaders.checkpoint.load_model` alike.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
Quantization = Mapping[str, Any]  # as in config.json: group_size, bits, mode, and a module's path -> the same, or False


def tiny_config(family: str, **changes: Any) -> dict[str, Any]:
    """The config.json of a two-layer model: hidden 64, heads 4/2, vocabulary 256.

    `tiny_config("qwen3", num_hidden_layers=3, rope_scaling={...})`
    """
    config: dict[str, Any] = {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": family in ("llama", "qwen3"),
        "eos_token_id": 2,
    }
    if family == "qwen3":
        config["head_dim"] = 32  # not hidden_size / heads, as in the real ones
    return config | changes


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a float checkpoint with its shape, in a checkpoint's usual order."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, key = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    family = config["model_type"]
    linears = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    biased = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"} if family == "qwen2" else set[str]()
    if config.get("attention_bias"):
        biased |= {name for name in linears if name.startswith("self_attn.")}
    if config.get("mlp_bias"):
        biased |= {name for name in linears if name.startswith("mlp.")}

    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}."
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        for name, shape in linears.items():
            shapes[f"{prefix}{name}.weight"] = shape
            if name in biased:
                shapes[f"{prefix}{name}.bias"] = shape[:1]
        if family == "qwen3":
            shapes[f"{prefix}self_attn.q_norm.weight"] = (head_dim,)
            shapes[f"{prefix}self_attn.k_norm.weight"] = (head_dim,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def random_tensors(
    config: Mapping[str, Any], quantization: Quantization | None = None, dtype: mx.Dtype = mx.float32, seed: int = 0
) -> dict[str, mx.array]:
    """Random tensors for a config, those of two dimensions quantized if asked; the seed alone decides the floats."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, mx.array] = {}
    for name, shape in tensor_shapes(config).items():
        values: np.ndarray[Any, Any] = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            values = 1 + values / 8
        elif len(shape) == 2:
            values = values * (2 / shape[1] ** 0.5)  # logits then differ enough for greedy text to be stable
        path = name.removesuffix(".weight")
        settings = None if quantization is None else settings_for(path, quantization)
        if len(shape) == 2 and settings is not None:
            tensors |= quantized_parts(path, mx.array(values), settings, dtype)
        else:
            tensors[name] = mx.array(values).astype(dtype)
    mx.eval(tensors)
    return tensors


def write_checkpoint(
    directory: Path | str,
    family: str,
    quantization: Quantization | None = None,
    dtype: mx.Dtype = mx.float32,
    seed: int = 0,
    num_shards: int = 1,
    **changes: Any,
) -> Path:
    """Write config.json and safetensors of a random model, and give the directory back.

    `write_checkpoint(tmp_path, "llama", {"group_size": 32, "bits": 4, "lm_head": {"group_size": 32, "bits": 8}})`
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family, **changes)
    if quantization is not None:
        config["quantization"] = config["quantization_config"] = dict(quantization)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    tensors = random_tensors(config, quantization, dtype, seed)
    if num_shards == 1:
        mx.save_safetensors(str(directory / "model.safetensors"), tensors, {"format": "mlx"})
    else:
        write_shards(directory, tensors, num_shards)
    return directory


def write_shards(directory: Path, tensors: Mapping[str, mx.array], num_shards: int) -> None:
    names = list(tensors)
    size = -(-len(names) // num_shards)
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        shard = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[number * size : (number + 1) * size]
        mx.save_safetensors(str(directory / shard), {name: tensors[name] for name in part}, {"format": "mlx"})
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def settings_for(path: str, quantization: Quantization) -> Mapping[str, Any] | None:
    """How one module is quantized: its own entry, if there is one, before the common one."""
    own = quantization.get(path, True)
    if own is False:
        return None
    return quantization if own is True else own


def quantized_parts(path: str, values: mx.array, settings: Mapping[str, Any], dtype: mx.Dtype) -> dict[str, mx.array]:
    mode = settings.get("mode", "affine")
    parts = mx.quantize(values, group_size=settings["group_size"], bits=settings["bits"], mode=mode)
    named = {f"{path}.{suffix}": part for suffix, part in zip(("weight", "scales", "biases"), parts, strict=False)}
    # The float modes keep their scales as bytes; affine ones keep theirs in the checkpoint's type.
    return {name: part.astype(dtype) if part.dtype == mx.float32 else part for name, part in named.items()}


ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
