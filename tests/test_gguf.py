"""GGUF files of all families against the same weights in safetensors, ggml's formulas, MLX's reader, and damage."""

import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import RopeScaling
from engine.quantized import QuantizedTensor, dequantize
from engine.refusal import BrokenFile, Refusal, Unsupported
from loaders import gguf
from loaders.checkpoint import load_model
from loaders.gguf import read_gguf
from loaders.gguf_reader import MAX_NAME_BYTES
from loaders.wheel_model import SMOLLM2, find_local
from tests.tiny import write_checkpoint
from tests.tiny_gguf import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    U64,
    Tensor,
    gguf_bytes,
    gguf_parts,
    interleaved,
    text,
    unpack,
    write_gguf,
)

FAMILIES = ("llama", "qwen2", "qwen3")
ONE: dict[str, Tensor] = {"a": ("F32", (2, 4), bytes(range(32)))}


@pytest.mark.parametrize("family", FAMILIES)
def test_floats_and_config_equal_those_of_the_same_safetensors(tmp_path: Path, family: str) -> None:
    ours = load_model(write_gguf(tmp_path / "model.gguf", family, rms_norm_eps=0.5))
    theirs = load_model(write_checkpoint(tmp_path, family, rms_norm_eps=0.5))
    assert ours.config == theirs.config
    expected = dict(theirs.weights.named())
    assert [name for name, _ in ours.weights.named()] == list(expected)
    for name, tensor in ours.weights.named():
        assert tensor.dtype == mx.float32 and mx.array_equal(tensor, expected[name]), name


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_halfs_keep_their_type_and_bits(tmp_path: Path, kind: str) -> None:
    dtype = {"F16": mx.float16, "BF16": mx.bfloat16}[kind]
    weights = load_model(write_gguf(tmp_path / "model.gguf", "qwen3", kind)).weights
    expected = load_model(write_checkpoint(tmp_path, "qwen3")).weights.layers[0].q_proj.weight.astype(dtype)
    assert weights.layers[0].q_proj.weight.dtype == dtype
    assert mx.array_equal(weights.layers[0].q_proj.weight, expected)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_stand_for_what_ggml_says(tmp_path: Path, family: str, kind: str) -> None:
    _, tensors = gguf_parts(family, kind)
    layer = load_model(write_gguf(tmp_path / "model.gguf", family, kind)).weights.layers[1]
    for module, stored in (("q_proj", "attn_q"), ("v_proj", "attn_v"), ("down_proj", "ffn_down")):
        _, shape, content = tensors[f"blk.1.{stored}.weight"]
        weight = getattr(layer, module).weight
        assert isinstance(weight, QuantizedTensor)
        assert (weight.bits, weight.group_size, weight.logical_shape) == (8 if kind == "Q8_0" else 4, 32, shape)
        assert weight.scales.dtype == mx.float16 and weight.biases is not None and weight.biases.dtype == mx.float16
        widened = dequantize(wide(weight))
        if family == "llama" and module == "q_proj":
            widened = mx.array(interleaved(np.array(widened), 4))
        assert np.allclose(np.array(widened).reshape(-1), unpack(content, kind), rtol=1e-6, atol=1e-7)


def wide(weight: QuantizedTensor) -> QuantizedTensor:
    """The same with scales in float32, in which MLX dequantizes exactly."""
    assert weight.biases is not None
    scales, biases = weight.scales.astype(mx.float32), weight.biases.astype(mx.float32)
    return QuantizedTensor(weight.packed, scales, biases, bits=weight.bits, group_size=weight.group_size)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_words_scales_and_biases_are_those_of_mlx(tmp_path: Path, kind: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", "qwen2", kind)
    theirs: Any = mx.load(str(path))
    weight = load_model(path).weights.layers[0].up_proj.weight
    assert isinstance(weight, QuantizedTensor) and weight.biases is not None
    assert mx.array_equal(weight.packed, theirs["blk.0.ffn_up.weight"])
    assert mx.array_equal(weight.scales, theirs["blk.0.ffn_up.scales"])
    assert mx.array_equal(weight.biases, theirs["blk.0.ffn_up.biases"])


def test_big_matrix_is_repacked_in_pieces_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", "Q4_1")
    whole = load_model(path).weights.embed_tokens
    monkeypatch.setattr("loaders.gguf_blocks.CHUNK_BYTES", 100)
    assert mx.array_equal(load_model(path).weights.embed_tokens, whole)


def test_metadata_of_every_type_arrives(tmp_path: Path) -> None:
    metadata: dict[str, tuple[int, Any]] = {
        "text": (STRING, "é"),
        "number": (U32, 2**32 - 1),
        "negative": (I32, -7),
        "big": (U64, 2**63),
        "float": (F32, 0.5),
        "flag": (BOOL, True),
        "empty": (ARRAY, (STRING, [])),
        "texts": (ARRAY, (STRING, ["", "a"])),
        "flags": (ARRAY, (BOOL, [True, False])),
        "nested": (ARRAY, (ARRAY, [(U32, [1, 2]), (STRING, ["x"])])),
    }
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(metadata, ONE, version=2))
    read = read_gguf(tmp_path / "x.gguf")
    assert read.version == 2
    expected = {name: content for name, (code, content) in metadata.items() if code != ARRAY}
    lists = {"empty": [], "texts": ["", "a"], "flags": [True, False], "nested": [[1, 2], ["x"]]}
    assert read.metadata == expected | lists
    assert read.metadata["flag"] is True
    entry = read.tensors["a"]
    assert (entry.kind, entry.shape) == ("F32", (2, 4))
    assert read.mapped.read(entry.start, entry.stop) == bytes(range(32))


def head(num_tensors: int = 0, num_pairs: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_pairs)


def pair(name: bytes, code: int, content: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", code) + content


def entry(name: str = "a", shape: tuple[int, ...] = (8,), code: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, code, offset)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read"),
        (b"GGU", "ends at byte 3, within its magic word"),
        (b"GGML" + bytes(20), "does not begin with GGUF"),
        (head()[:-1], "within its number of pairs"),
        (head(version=1), "has version 1; known are versions 2 and 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian"),
        (head(num_tensors=2**63), f"announces {2**63} tensors; at most 100000"),
        (head(num_pairs=2**63), f"announces {2**63} metadata pairs"),
        (head(num_pairs=1), "within the name of a metadata pair"),
        (head(num_pairs=1) + struct.pack("<Q", MAX_NAME_BYTES + 1), "of 65536 bytes; at most 65535"),
        (head(num_pairs=1) + struct.pack("<Q", 60000), "within the name of a metadata pair: 60000 bytes"),
        (head(num_pairs=1) + pair(b"\xff", U32, bytes(4)), "that is not UTF-8"),
        (head(num_pairs=1) + pair(b"x", 13, bytes(4)), "has the unknown type 13 for the metadata 'x'"),
        (head(num_pairs=2) + pair(b"x", U32, bytes(4)) * 2, "has the metadata 'x' twice"),
        (head(num_pairs=1) + pair(b"x", STRING, struct.pack("<Q", 2**63)), f"of {2**63} bytes; at most"),
        (head(num_pairs=1) + pair(b"x", STRING, struct.pack("<Q", 1) + b"\xff"), "that is not UTF-8"),
        (head(num_pairs=1) + pair(b"x", BOOL, b"\2"), "neither 0 nor 1"),
        (head(num_pairs=1) + pair(b"x", ARRAY, struct.pack("<IQ", U32, 2**62)), f"{2**64} bytes at"),
        (head(num_pairs=1) + pair(b"x", ARRAY, struct.pack("<IQ", STRING, 2**62)), f"announces {2**62} values"),
        (head(num_pairs=1) + pair(b"x", ARRAY, struct.pack("<IQ", ARRAY, 2**62)), f"announces {2**62} values"),
        (head(num_pairs=1) + pair(b"x", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9), "nests lists more than 4 deep"),
        (head(num_pairs=1) + pair(b"general.alignment", U32, bytes(4)), "has the alignment 0"),
        (head(num_pairs=1) + pair(b"general.alignment", U32, struct.pack("<I", 12)), "has the alignment 12"),
        (
            head(num_pairs=1) + pair(b"general.alignment", U32, struct.pack("<I", 1 << 30)),
            "has the alignment 1073741824",
        ),
        (head(num_pairs=1) + pair(b"general.alignment", STRING, text("a")), "has the alignment 'a'"),
        (head(num_tensors=1), "within the name of a tensor"),
        (head(num_tensors=1) + entry(shape=(1, 1, 1, 1, 1)), "of 5 dimensions; at most 4"),
        (head(num_tensors=1) + entry(shape=(2**31,)), "which overflows"),
        (head(num_tensors=1) + entry(shape=(2**31 - 1,) * 4), "which overflows"),
        (head(num_tensors=1) + entry(code=99), "has the tensor 'a' of the unknown type 99"),
        (head(num_tensors=1) + entry(code=2, shape=(33,)), "with rows of 33 weights; Q4_0 has blocks of 32"),
        (head(num_tensors=1) + entry(code=2, shape=()), "with rows of 1 weights; Q4_0 has blocks of 32"),
        (head(num_tensors=1) + entry(offset=8), "at offset 8, which is no multiple of 32"),
        (head(num_tensors=1) + entry(offset=2**63) + bytes(99), "is truncated: tensor 'a' ends at byte"),
        (head(num_tensors=1) + entry(), "is truncated: tensor 'a'"),
        (head(num_tensors=2) + entry() * 2 + bytes(99), "has the tensor 'a' twice"),
        (head(num_tensors=2) + entry() + entry("b") + bytes(99), "has the tensor 'b' on top of another one"),
    ],
)
def test_each_fault_has_its_own_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises((BrokenFile, Unsupported)) as caught:
        read_gguf(tmp_path / "broken.gguf")
    assert sentence in caught.value.message and "\n" not in caught.value.message


def altered(path: Path, family: str = "llama", kind: str = "F32", **metadata: tuple[int, Any] | None) -> Path:
    """A tiny model with some metadata changed or, for None, left out; `__` stands for a dot."""
    known, tensors = gguf_parts(family, kind)
    for name, content in metadata.items():
        known.pop(name.replace("__", "."), None)
        if content is not None:
            known[name.replace("__", ".")] = content
    path.write_bytes(gguf_bytes(known, tensors))
    return path


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        (
            {"general__architecture": (STRING, "gemma3")},
            "architecture is 'gemma3'; known in GGUF are llama, qwen2, qwen3",
        ),
        ({"general__architecture": (U32, 1)}, "architecture is 1"),
        ({"general__architecture": None}, "architecture is None"),
        ({"llama__block_count": (U32, 10**9)}, "num_hidden_layers is 1000000000"),
        ({"llama__block_count": (U32, 3)}, "lacks the tensor blk.2."),
        ({"llama__block_count": (U32, 1)}, "has tensors that a llama model does not: blk.1."),
        ({"llama__attention__head_count": (ARRAY, (U32, [4, 4]))}, "num_attention_heads is [4, 4]"),
        ({"llama__attention__head_count": (U32, 8)}, "blk.0.attn_k.weight is F32 of shape (32, 64); shape (16, 64)"),
        ({"llama__embedding_length": (U32, 128)}, "token_embd.weight is F32 of shape (256, 64); shape (256, 128)"),
        ({"llama__rope__dimension_count": (U32, 8)}, "partial_rotary_factor is 0.5"),
        (
            {"llama__rope__scaling__type": (STRING, "longrope"), "llama__rope__scaling__factor": (F32, 2.0)},
            "'longrope'",
        ),
        ({"tokenizer__ggml__eos_token_id": (ARRAY, (U32, [1]))}, "eos_token_id is [[1]]"),
        ({"llama__expert_count": (U32, 8)}, "mixture of 8 experts"),
        ({"split__count": (U32, 2)}, "one of 2 parts"),
    ],
)
def test_models_that_do_not_fit_are_refused(tmp_path: Path, metadata: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refusal) as caught:
        load_model(altered(tmp_path / "x.gguf", **metadata))
    assert sentence in caught.value.message


def with_tensor(path: Path, name: str, tensor: Tensor | None, family: str = "llama") -> Path:
    metadata, tensors = gguf_parts(family)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    path.write_bytes(gguf_bytes(metadata, tensors))
    return path


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("token_embd.weight", None, "lacks the tensor token_embd.weight"),
        ("output_norm.weight", None, "lacks the tensor output_norm.weight"),
        ("output_norm.weight", ("F32", (32,), bytes(128)), "output_norm.weight is F32 of shape (32,); 64 floats"),
        ("blk.0.ffn_up.weight", ("Q6_K", (128, 256), bytes(128 * 210)), "is Q6_K of shape (128, 256); shape (128, 64)"),
        ("blk.0.ffn_up.weight", ("Q4_0", (128, 64), b"\xff" * 128 * 36), "whose scale is not a finite number"),
        ("rope_freqs.weight", ("F32", (8,), struct.pack("<8f", *[1] * 7, 9)), "in an unknown way"),
        ("rope_freqs.weight", ("F32", (3,), bytes(12)), "half a head of F32 is wanted"),
        ("mystery.weight", ("F32", (1,), bytes(4)), "has tensors that a llama model does not: mystery.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, name: str, tensor: Tensor | None, sentence: str) -> None:
    with pytest.raises(Refusal) as caught:
        load_model(with_tensor(tmp_path / "x.gguf", name, tensor))
    assert sentence in caught.value.message


def test_unreadable_type_is_refused_by_its_name(tmp_path: Path) -> None:
    metadata, tensors = gguf_parts("llama", intermediate_size=256)
    tensors["blk.0.ffn_down.weight"] = ("Q6_K", (64, 256), bytes(64 * 210))
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(metadata, tensors))
    with pytest.raises(Unsupported, match="type Q6_K; readable are F32, F16, BF16, Q8_0, Q4_0, Q4_1"):
        load_model(tmp_path / "x.gguf")


def test_llama3_scaling_is_found_in_the_frequencies(tmp_path: Path) -> None:
    wavelengths = 2 * np.pi * 10000.0 ** (np.arange(0, 16, 2) / 16)
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    divisors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)
    path = with_tensor(tmp_path / "x.gguf", "rope_freqs.weight", ("F32", (8,), divisors.tobytes()))
    assert load_model(path).config.rope_scaling == RopeScaling("llama3", 8.0, 8192)


def test_scaling_in_the_metadata_is_read(tmp_path: Path) -> None:
    path = altered(
        tmp_path / "x.gguf",
        "qwen2",
        qwen2__rope__scaling__type=(STRING, "yarn"),
        qwen2__rope__scaling__factor=(F32, 4.0),
        qwen2__rope__scaling__original_context_length=(U32, 256),
    )
    assert load_model(path).config.rope_scaling == RopeScaling("yarn", 4.0, 256)


def test_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    names = {load_model(write_gguf(tmp_path / f"{seed}.gguf", "llama", seed=seed % 2)).fingerprint for seed in range(4)}
    assert len(names) == 2


SAMPLE = gguf_bytes(
    {
        "general.alignment": (U32, 32),
        "text": (STRING, "abc"),
        "list": (ARRAY, (ARRAY, [(U32, [1, 2]), (STRING, ["x", ""])])),
        "flag": (BOOL, True),
    },
    {"a": ("F32", (2, 4), bytes(32)), "b": ("Q4_0", (1, 32), bytes(18)), "c": ("F16", (3,), bytes(6))},
)
MODEL = gguf_bytes(*gguf_parts("qwen3", "Q4_1"))
MODEL_HEAD = 2600  # about where its tensors begin
damage = st.lists(
    st.tuples(
        st.integers(0, MODEL_HEAD),
        st.sampled_from([0, 0, 1, 1, 4, 8, 100]),
        st.sampled_from([b"", b"\0", b"\1", b"\7", b"\x20", b"\x80", b"\xff", b"\xff" * 8, bytes(8), b"\1" + bytes(7)]),
    ),
    min_size=1,
    max_size=6,
)


def attempt(path: Path, content: bytes) -> None:
    """Refused with our error or loaded; anything else is a failure of the test."""
    path.unlink(missing_ok=True)  # to write over a file waits for the disk
    path.write_bytes(content)
    try:
        read = read_gguf(path)
        assert all(tensor.stop <= len(content) for tensor in read.tensors.values())
        load_model(path)
    except Refusal as refusal:
        assert "\n" not in refusal.message


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzzed.gguf"


@settings(max_examples=600, deadline=None)
@given(damages=damage)
def test_damaged_files_are_refused_or_loaded(fuzzed: Path, damages: list[tuple[int, int, bytes]]) -> None:
    """Each damage alone and all of them together, in a small file and in a model."""
    for whole in (SAMPLE, MODEL):
        together = whole
        for at, drop, put in damages:
            place = at % min(len(whole), MODEL_HEAD)
            # In half of the cases nothing moves: what is overwritten is as long as what is put there.
            alone = whole[:place] + put + whole[place + (len(put) if drop == 0 else drop) :]
            together = together[:place] + put + together[place + len(put) :]
            attempt(fuzzed, alone)
        attempt(fuzzed, together)


@settings(max_examples=500, deadline=None)
@given(content=st.binary(max_size=100))
def test_noise_is_refused_or_loaded(fuzzed: Path, content: bytes) -> None:
    attempt(fuzzed, content)
    attempt(fuzzed, head(0, 1) + content)
    attempt(fuzzed, head(1, 0) + content)


@pytest.mark.skipif(find_local(SMOLLM2) is None, reason="SmolLM2 is neither installed nor in the cache")
def test_smollm2_has_the_words_that_mlx_reads() -> None:
    path = find_local(SMOLLM2)
    model = load_model("smollm2")
    theirs: Any = mx.load(str(path))
    assert (model.config.architecture, model.config.num_layers, model.config.vocab_size) == ("llama", 30, 49152)
    embedding = model.weights.embed_tokens
    assert isinstance(embedding, QuantizedTensor)
    assert mx.array_equal(embedding.packed, theirs["token_embd.weight"])
    query = model.weights.layers[29].q_proj.weight
    stored = theirs["blk.29.attn_q.weight"]  # (heads, half, 2, words) there, (heads, 2, half, words) here
    assert mx.array_equal(query, stored.reshape(9, 32, 2, -1).swapaxes(1, 2).reshape(576, -1))


def test_limits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").write_bytes(SAMPLE)
    monkeypatch.setattr(gguf, "MAX_TENSORS", 2)
    with pytest.raises(BrokenFile, match="announces 3 tensors; at most 2"):
        read_gguf(tmp_path / "x.gguf")
