"""A GGUF file of a real model's shape with random weights, for measuring where the real one cannot be had."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tests.tiny_gguf import ALIGNMENT, ARRAY, F32, STRING, TYPE_CODES, U32, text, value

SHAPES = {"qwen2-1.5b": {"layers": 28, "hidden": 1536, "inner": 8960, "heads": 12, "kv_heads": 2, "vocabulary": 151936}}


def write_made_up(path: Path, name: str) -> Path:
    """Q4_1 matrices, tied head."""
    s = SHAPES[name]
    query, key = s["hidden"], s["hidden"] // s["heads"] * s["kv_heads"]
    metadata: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, "qwen2"),
        "general.name": (STRING, name),
        "qwen2.block_count": (U32, s["layers"]),
        "qwen2.context_length": (U32, 32768),
        "qwen2.embedding_length": (U32, s["hidden"]),
        "qwen2.feed_forward_length": (U32, s["inner"]),
        "qwen2.attention.head_count": (U32, s["heads"]),
        "qwen2.attention.head_count_kv": (U32, s["kv_heads"]),
        "qwen2.attention.layer_norm_rms_epsilon": (F32, 1e-6),
        "qwen2.rope.freq_base": (F32, 1e6),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "qwen2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, [f"t{i}" for i in range(s["vocabulary"])])),
        "tokenizer.ggml.token_type": (ARRAY, (5, [1] * s["vocabulary"])),
        "tokenizer.ggml.merges": (ARRAY, (STRING, ["t 0"])),
        "tokenizer.ggml.eos_token_id": (U32, 0),
    }
    tensors: list[tuple[str, str, tuple[int, ...]]] = [("token_embd.weight", "Q4_1", (s["vocabulary"], s["hidden"]))]
    for i in range(s["layers"]):
        shapes = {
            "attn_q": (query, s["hidden"]), "attn_k": (key, s["hidden"]), "attn_v": (key, s["hidden"]),
            "attn_output": (s["hidden"], query), "ffn_gate": (s["inner"], s["hidden"]),
            "ffn_up": (s["inner"], s["hidden"]), "ffn_down": (s["hidden"], s["inner"]),
        }  # fmt: skip
        tensors += [(f"blk.{i}.{module}.weight", "Q4_1", shape) for module, shape in shapes.items()]
        tensors += [
            (f"blk.{i}.{module}.bias", "F32", (shapes[module][0],)) for module in ("attn_q", "attn_k", "attn_v")
        ]
        tensors += [(f"blk.{i}.{norm}.weight", "F32", (s["hidden"],)) for norm in ("attn_norm", "ffn_norm")]
    tensors.append(("output_norm.weight", "F32", (s["hidden"],)))
    with path.open("wb") as file:
        write(file, metadata, tensors)
    return path


def write(
    file: BinaryIO, metadata: dict[str, tuple[int, Any]], tensors: list[tuple[str, str, tuple[int, ...]]]
) -> None:
    head, offset = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)), 0
    for name, (code, content) in metadata.items():
        head += text(name) + struct.pack("<I", code) + value(code, content)
    for name, kind, shape in tensors:
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape[::-1])
        head += struct.pack("<IQ", TYPE_CODES[kind], offset)
        offset += aligned(size_of(kind, shape))
    file.write(head + bytes(-len(head) % ALIGNMENT))
    rng = np.random.default_rng(0)
    for name, kind, shape in tensors:
        content = random_blocks(rng, shape) if kind == "Q4_1" else np.ones(shape, np.float32).tobytes()
        if name.endswith(".bias"):
            content = bytes(len(content))
        file.write(content + bytes(-len(content) % ALIGNMENT))


def random_blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> bytes:
    """Blocks of scale, lowest value and 32 codes of 4 bits, of the size of weights that keep activations in bounds."""
    blocks = np.zeros((shape[0] * shape[1] // 32, 20), np.uint8)
    blocks[:, :4] = (np.array([0.13, -1.0]) * shape[1] ** -0.5).astype(np.float16).view(np.uint8)
    blocks[:, 4:] = rng.integers(0, 256, (len(blocks), 16), np.uint8)
    return blocks.tobytes()


def size_of(kind: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) // 32 * 20 if kind == "Q4_1" else int(np.prod(shape)) * 4


def aligned(size: int) -> int:
    return size + -size % ALIGNMENT
