"""A GGUF file's metadata -> ModelConfig, by way of the config.json that the same model would have.

So one set of checks and refusals holds for both. Knows the names of metadata, and no other tensor than rope_freqs.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.refusal import BrokenFile, Unsupported, shown
from loaders.config import CheckpointConfig, parse_config
from loaders.gguf import GGUFFile

ARCHITECTURES = ("llama", "qwen2", "qwen3")
NAMES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "max_position_embeddings": "context_length",
}
ROPE_FREQS = "rope_freqs.weight"
# What all Llama 3 models have: files keep only the frequencies that follow from it.
LLAMA3 = {"original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def config_of(gguf: GGUFFile) -> CheckpointConfig:
    """The numbers of the model in a file."""
    architecture = gguf.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise Unsupported(f"architecture is {shown(architecture)}; known in GGUF are {', '.join(ARCHITECTURES)}")
    refuse_other_kinds(gguf, f"{architecture}")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise BrokenFile(f"{gguf.path} lacks the tensor token_embd.weight")
    raw: dict[str, Any] = {name: gguf.metadata.get(f"{architecture}.{key}") for name, key in NAMES.items()}
    raw |= {
        "model_type": architecture,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "eos_token_id": end_tokens(gguf),
    }
    config = parse_config(raw)
    raw["partial_rotary_factor"] = rotated_part(gguf, f"{architecture}", config.model.head_dim)
    raw["rope_scaling"] = rope_scaling(gguf, f"{architecture}", config)
    return parse_config(raw)


def refuse_other_kinds(gguf: GGUFFile, architecture: str) -> None:
    if experts := gguf.metadata.get(f"{architecture}.expert_count"):
        raise Unsupported(f"{gguf.path} is a mixture of {experts} experts; only dense models are known")
    num_files = gguf.metadata.get("split.count", 1)
    if isinstance(num_files, int) and num_files > 1:
        raise Unsupported(f"{gguf.path} is one of {num_files} parts; a GGUF model in one file is wanted")


def end_tokens(gguf: GGUFFile) -> list[object]:
    """The ids that end a text or a turn."""
    eos, eot = (gguf.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
    return [token for token in (eos, None if eot == eos else eot) if token is not None]


def rotated_part(gguf: GGUFFile, architecture: str, head_dim: int) -> float:
    rotated = gguf.metadata.get(f"{architecture}.rope.dimension_count", head_dim)
    return rotated / head_dim if isinstance(rotated, int) else 0.0


def rope_scaling(gguf: GGUFFile, architecture: str, config: CheckpointConfig) -> dict[str, Any] | None:
    if ROPE_FREQS in gguf.tensors:
        return llama3_scaling(gguf, config)
    prefix = f"{architecture}.rope.scaling"
    kind = gguf.metadata.get(f"{prefix}.type", "none")
    if kind == "none":
        return None
    return {
        "rope_type": kind,
        "factor": gguf.metadata.get(f"{prefix}.factor"),
        "original_max_position_embeddings": gguf.metadata.get(f"{prefix}.original_context_length"),
        "attention_factor": gguf.metadata.get(f"{prefix}.attn_factor"),
    }


def llama3_scaling(gguf: GGUFFile, config: CheckpointConfig) -> dict[str, Any]:
    """The llama3 scaling that gives the frequencies in a file."""
    entry = gguf.tensors[ROPE_FREQS]
    if entry.kind != "F32" or entry.shape != (config.model.head_dim // 2,):
        raise BrokenFile(
            f"{gguf.path}: {ROPE_FREQS} is {entry.kind} of shape {entry.shape}; half a head of F32 is wanted"
        )
    found: NDArray[np.float32] = gguf.mapped.view(entry.start, entry.stop, np.float32)
    factor = float(found.max())
    if not (math.isfinite(factor) and factor >= 1 and np.allclose(found, llama3_divisors(config, factor), rtol=1e-3)):
        raise Unsupported(f"{gguf.path} stretches rotary frequencies in an unknown way; known is that of Llama 3")
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def llama3_divisors(config: CheckpointConfig, factor: float) -> NDArray[np.float64]:
    """By what each frequency is divided: 1 for the fast, `factor` for the slow, something between for those between."""
    head_dim, theta = config.model.head_dim, config.model.rope_theta
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    smooth = np.clip((LLAMA3["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0, 1)
    divisors: NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return divisors
