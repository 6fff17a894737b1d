"""Tiny GGUF files made on the spot: a writer of the format, ggml's blocks in NumPy, models like those of tests.tiny."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from tests.tiny import random_tensors, tiny_config

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
TYPE_CODES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q6_K": 14, "BF16": 30}
ALIGNMENT = 32

Floats = NDArray[np.float32]
Tensor = tuple[str, tuple[int, ...], bytes]  # the type, the shape with the outermost dimension first, the content


def text(value: str) -> bytes:
    content = value.encode()
    return struct.pack("<Q", len(content)) + content


def value(code: int, content: Any) -> bytes:
    """One value; that of an ARRAY is (the elements' code, a list)."""
    if code == ARRAY:
        inner, elements = content
        return struct.pack("<IQ", inner, len(elements)) + b"".join(value(inner, element) for element in elements)
    if code == STRING:
        return text(content)
    return struct.pack("<" + {U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q"}[code], content)


def gguf_bytes(metadata: Mapping[str, tuple[int, Any]], tensors: Mapping[str, Tensor], version: int = 3) -> bytes:
    """A whole file."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for name, (code, content) in metadata.items():
        head += text(name) + struct.pack("<I", code) + value(code, content)
    data = b""
    for name, (kind, shape, content) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", TYPE_CODES[kind], len(data))
        data += content + bytes(-len(content) % ALIGNMENT)
    return head + bytes(-len(head) % ALIGNMENT) + data


def pack(values: Floats, kind: str) -> bytes:
    """Floats in one of ggml's types."""
    match kind:
        case "F32":
            return values.astype("<f4").tobytes()
        case "F16":
            return values.astype("<f2").tobytes()
        case "BF16":
            return np.asarray(mx.array(values).astype(mx.bfloat16).view(mx.uint16)).tobytes()
    blocks = values.reshape(-1, 32)
    match kind:
        case "Q4_0":  # w = d * (q - 8)
            scale = half(np.abs(blocks).max(-1, keepdims=True) / 7)
            return joined(scale, nibbles(np.rint(blocks / wide(scale)) + 8))
        case "Q4_1":  # w = d * q + m
            low = half(blocks.min(-1, keepdims=True))
            scale = half((blocks.max(-1, keepdims=True) - wide(low)) / 15)
            return joined(scale, low, nibbles(np.rint((blocks - wide(low)) / wide(scale))))
        case "Q8_0":  # w = d * q
            scale = half(np.abs(blocks).max(-1, keepdims=True) / 127)
            return joined(scale, np.clip(np.rint(blocks / wide(scale)), -128, 127).astype(np.int8))
    raise KeyError(kind)


def unpack(content: bytes, kind: str) -> Floats:
    """What ggml's documentation says that some bytes stand for, weight by weight, flat."""
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    weights = []
    for start in range(0, len(content), size):
        block = content[start : start + size]
        d = float(np.frombuffer(block[:2], "<f2")[0])
        if kind == "Q8_0":
            weights += [d * q for q in np.frombuffer(block[2:], np.int8).tolist()]
            continue
        m = float(np.frombuffer(block[2:4], "<f2")[0]) if kind == "Q4_1" else -8 * d
        codes = block[-16:]
        weights += [d * (code & 15) + m for code in codes] + [d * (code >> 4) + m for code in codes]
    return np.array(weights, np.float32)


def half(values: Floats) -> NDArray[np.float16]:
    return values.astype(np.float16)


def wide(values: NDArray[np.float16]) -> Floats:
    return np.where(values == 0, 1, values).astype(np.float32)


def nibbles(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """Codes (blocks, 32) -> bytes (blocks, 16), code j beside code j + 16."""
    limited = np.clip(codes, 0, 15).astype(np.uint8)
    packed: NDArray[np.uint8] = limited[:, :16] | limited[:, 16:] << 4
    return packed


def joined(*parts: NDArray[Any]) -> bytes:
    """The parts of each block side by side."""
    return np.concatenate([part.view(np.uint8).reshape(len(part), -1) for part in parts], axis=1).tobytes()


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    path, _, part = name.rpartition(".")
    if path.startswith("model.layers."):
        _, _, index, module = path.split(".", 3)
        return f"blk.{index}.{NAMES[module]}.{part}"
    return f"{NAMES[path]}.{part}"


def interleaved(values: Floats, num_heads: int) -> Floats:
    """The rows of q or k as llama.cpp's converter puts them for files of the llama architecture."""
    shape = values.shape
    return values.reshape(num_heads, 2, shape[0] // num_heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def gguf_parts(
    family: str, kind: str = "F32", seed: int = 0, **changes: Any
) -> tuple[dict[str, tuple[int, Any]], dict[str, Tensor]]:
    """Metadata and tensors of the model that `write_checkpoint(..., family, seed=seed)` writes, matrices as `kind`."""
    config = tiny_config(family, **changes)
    metadata: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, family),
        f"{family}.block_count": (U32, config["num_hidden_layers"]),
        f"{family}.context_length": (U32, config["max_position_embeddings"]),
        f"{family}.embedding_length": (U32, config["hidden_size"]),
        f"{family}.feed_forward_length": (U32, config["intermediate_size"]),
        f"{family}.attention.head_count": (U32, config["num_attention_heads"]),
        f"{family}.attention.head_count_kv": (U32, config["num_key_value_heads"]),
        f"{family}.attention.layer_norm_rms_epsilon": (F32, config["rms_norm_eps"]),
        f"{family}.rope.freq_base": (F32, config["rope_theta"]),
        "tokenizer.ggml.eos_token_id": (U32, config["eos_token_id"]),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, ["a", "b", "é"])),
    }
    if "head_dim" in config:
        metadata[f"{family}.attention.key_length"] = (U32, config["head_dim"])
    tensors: dict[str, Tensor] = {}
    for name, array in random_tensors(config, seed=seed).items():
        values: Floats = np.array(array)
        for module, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if family == "llama" and module in name:
                values = interleaved(values, config[heads])
        stored = kind if values.ndim == 2 else "F32"
        tensors[gguf_name(name)] = (stored, values.shape, pack(values, stored))
    return metadata, tensors


def write_gguf(path: Path, family: str, kind: str = "F32", seed: int = 0, **changes: Any) -> Path:
    """Write a tiny model as a GGUF file."""
    path.write_bytes(gguf_bytes(*gguf_parts(family, kind, seed, **changes)))
    return path
