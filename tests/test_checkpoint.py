"""Checkpoints of all families against MLX's reader and mlx_lm's modules, and damaged ones against their sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import pytest
from mlx.utils import tree_flatten

from engine.quantized import QuantizedTensor
from engine.refusal import BrokenFile, Refusal, UnknownModel
from engine.weights import Model
from loaders.checkpoint import load_model
from loaders.progress import Progress
from loaders.shards import INDEX
from tests.tiny import FAMILIES, write_checkpoint
from tests.tiny_gguf import write_gguf

MIXED = {
    "group_size": 64,
    "bits": 4,
    "model.layers.0.self_attn.q_proj": {"group_size": 32, "bits": 8},
    "model.layers.1.mlp.down_proj": False,
    "model.embed_tokens": {"group_size": 32, "bits": 6},
}
QUANTIZATIONS: dict[str, dict[str, Any] | None] = {
    "float": None,
    "4bit": {"group_size": 32, "bits": 4},
    "8bit": {"group_size": 64, "bits": 8},
    "mixed": MIXED,
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
    "nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
}


def flat_tensors(model: Model) -> dict[str, mx.array]:
    """Every stored tensor by its name in the checkpoint."""
    found: dict[str, mx.array] = {}
    for name, tensor in model.weights.named():
        found[name] = tensor
        if isinstance(tensor, QuantizedTensor):
            path = name.removesuffix(".weight")
            found[f"{path}.scales"] = tensor.scales
            if tensor.biases is not None:
                found[f"{path}.biases"] = tensor.biases
    return found


def same(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and bool(mx.array_equal(a, b))


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_the_one_in_the_file(tmp_path: Path, family: str, dtype: mx.Dtype, num_shards: int) -> None:
    for kind, quantization in QUANTIZATIONS.items():
        directory = write_checkpoint(tmp_path / kind, family, quantization, dtype, num_shards=num_shards)
        stored: dict[str, mx.array] = {}
        for path in directory.glob("*.safetensors"):
            stored |= mx.load(str(path))  # type: ignore[arg-type]
        loaded = flat_tensors(load_model(directory))
        assert loaded.keys() == stored.keys()
        assert all(same(loaded[name], stored[name]) for name in stored), kind


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_those_that_mlx_lm_loads(tmp_path: Path, family: str, kind: str) -> None:
    directory = write_checkpoint(tmp_path, family, QUANTIZATIONS[kind])
    reference, _ = mlx_lm.utils.load_model(directory)
    theirs: dict[str, mx.array] = dict(tree_flatten(reference.parameters()))
    ours = flat_tensors(load_model(directory))
    assert ours.keys() == theirs.keys()
    assert all(same(ours[name], theirs[name]) for name in ours)


def test_formats_of_quantized_tensors_follow_the_config(tmp_path: Path) -> None:
    weights = load_model(write_checkpoint(tmp_path, "llama", MIXED)).weights
    assert isinstance(weights.embed_tokens, QuantizedTensor)
    assert (weights.embed_tokens.bits, weights.embed_tokens.group_size) == (6, 32)
    query, down = weights.layers[0].q_proj.weight, weights.layers[1].down_proj.weight
    assert isinstance(query, QuantizedTensor) and (query.bits, query.group_size) == (8, 32)
    assert query.logical_shape == (64, 64)
    assert not isinstance(down, QuantizedTensor)
    key = weights.layers[0].k_proj.weight
    assert isinstance(key, QuantizedTensor) and (key.bits, key.group_size) == (4, 64)


def test_format_that_the_config_has_wrong_follows_from_the_shapes(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, "llama", {"group_size": 32, "bits": 8})
    edit_config(directory, quantization={"group_size": 64, "bits": 4})
    weight = load_model(directory).weights.layers[0].q_proj.weight
    assert isinstance(weight, QuantizedTensor) and (weight.bits, weight.group_size) == (8, 32)


def test_biases_and_head_norms_are_where_the_family_has_them(tmp_path: Path) -> None:
    qwen2 = load_model(write_checkpoint(tmp_path / "qwen2", "qwen2")).weights.layers[0]
    assert qwen2.q_proj.bias is not None and qwen2.o_proj.bias is None and qwen2.q_norm is None
    qwen3 = load_model(write_checkpoint(tmp_path / "qwen3", "qwen3")).weights.layers[0]
    assert qwen3.q_proj.bias is None and qwen3.q_norm is not None and qwen3.q_norm.shape == (32,)
    llama = write_checkpoint(tmp_path / "llama", "llama", attention_bias=True, mlp_bias=True)
    assert load_model(llama).weights.layers[0].down_proj.bias is not None


def test_tied_head_that_is_stored_as_well_is_left_out(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, "llama", tie_word_embeddings=False)
    edit_config(directory, tie_word_embeddings=True)
    weights = load_model(directory).weights
    assert weights.lm_head is None and weights.head is weights.embed_tokens


def test_progress_ends_where_the_files_end(tmp_path: Path) -> None:
    reports: list[Progress] = []
    directory = write_checkpoint(tmp_path, "qwen2", num_shards=2)
    load_model(directory, on_progress=reports.append)
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    total = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    assert reports[-1].total == total and total * 0.9 < reports[-1].done <= total


def test_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    first = load_model(write_checkpoint(tmp_path / "a", "llama", seed=1)).fingerprint
    assert first == load_model(write_checkpoint(tmp_path / "b", "llama", seed=1)).fingerprint
    others = [
        write_checkpoint(tmp_path / "c", "llama", seed=2),
        write_checkpoint(tmp_path / "d", "llama", seed=1, rope_theta=5000.0),
        write_checkpoint(tmp_path / "e", "llama", {"bits": 4, "group_size": 32}, seed=1),
    ]
    assert len({first, *(load_model(other).fingerprint for other in others)}) == 4


def test_no_second_copy_of_the_weights_is_made(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
    directory = write_checkpoint(tmp_path, "llama", {"bits": 4, "group_size": 64}, **sizes)
    for path, num_bytes in ((directory, (directory / "model.safetensors").stat().st_size), q4_file(tmp_path, **sizes)):
        mx.synchronize()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        model = load_model(path)
        largest = max(tensor.nbytes for _, tensor in model.weights.named())
        assert mx.get_peak_memory() - before < num_bytes + 2 * largest


def q4_file(directory: Path, **sizes: int) -> tuple[Path, int]:
    path = write_gguf(directory / "model.gguf", "llama", "Q4_1", **sizes)
    return path, path.stat().st_size


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(directory: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        load_model(directory)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", "qwen2", {"group_size": 32, "bits": 4}, num_shards=2)


def test_missing_config_and_missing_weights_are_unknown_models(tmp_path: Path, sharded: Path) -> None:
    assert isinstance(refusal(tmp_path), UnknownModel)
    for path in sharded.glob("model*"):
        path.unlink()
    assert "has no weights" in str(refusal(sharded))


def test_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    assert "lacks the shard model-00002-of-00002.safetensors" in str(refusal(sharded))


def test_truncated_shard_is_named(sharded: Path) -> None:
    path = sharded / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert "model-00002-of-00002.safetensors is truncated" in str(refusal(sharded))


def rewrite(directory: Path, **changes: mx.array | None) -> None:
    """Write a checkpoint's single file again with some tensors changed or, for None, left out."""
    path = directory / "model.safetensors"
    tensors: Any = mx.load(str(path))
    mx.eval(tensors)
    for name, value in changes.items():
        full = name.replace("__", ".")
        tensors.pop(full, None)
        if value is not None:
            tensors[full] = value
    mx.save_safetensors(str(path), tensors)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model__norm__weight": None}, "lacks the tensor model.norm.weight"),
        ({"lm_head__biases": None}, "lacks the tensor lm_head.biases"),
        ({"lm_head__weight": None}, "lacks the tensor lm_head.weight"),
        ({"model__layers__1__mlp__up_proj__scales": None}, "up_proj.weight is U32 of shape (128, 8); floats of shape"),
        ({"model__layers__1__self_attn__k_proj__bias": None}, "lacks the tensor model.layers.1.self_attn.k_proj.bias"),
        (
            {"extra__a": mx.ones(1), "extra__b": mx.ones(1)},
            "has tensors that a qwen2 model does not: extra.a and 1 more",
        ),
        ({"model__norm__weight": mx.ones(63)}, "model.norm.weight is F32 of shape (63,); 64 floats"),
        ({"model__norm__weight": mx.ones(64, mx.int32)}, "model.norm.weight is I32"),
        (
            {"lm_head__weight": mx.ones((256, 9), mx.uint32)},
            "lm_head.weight is U32 of shape (256, 9); words of shape (256, 8)",
        ),
        ({"lm_head__weight": mx.ones((256, 8), mx.int32)}, "lm_head.weight is I32"),
        ({"lm_head__scales": mx.ones((256, 2, 1))}, "lm_head.scales is F32 of shape (256, 2, 1)"),
        ({"lm_head__scales": mx.ones((256, 0))}, "lm_head.scales is F32 of shape (256, 0)"),
        ({"lm_head__scales": mx.ones((256, 2), mx.uint8)}, "does not: lm_head.biases"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, mx.array | None], sentence: str) -> None:
    directory = write_checkpoint(tmp_path, "qwen2", {"group_size": 32, "bits": 4})
    rewrite(directory, **changes)
    assert sentence in str(refusal(directory))


def test_quantized_tensors_without_quantization_in_the_config_are_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, "llama", {"group_size": 32, "bits": 4})
    edit_config(directory, quantization=None, quantization_config=None)
    assert "config.json does not quantize that module" in str(refusal(directory))


def test_weights_of_another_size_than_the_config_says_are_refused(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, "llama")
    edit_config(directory, hidden_size=128, head_dim=16)
    assert "model.embed_tokens.weight is F32 of shape (256, 64); floats of shape (256, 128)" in str(refusal(directory))


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": []}, "has no weight_map"),
        ({"weight_map": {"a": "../../etc/passwd"}}, "puts 'a' into '../../etc/passwd'; a file's name is wanted"),
        ({"weight_map": {"a": 1}}, "puts 'a' into 1"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "lacks the tensor 'a', which its index"),
    ],
)
def test_broken_index_is_refused(sharded: Path, index: dict[str, Any], sentence: str) -> None:
    (sharded / INDEX).write_text(json.dumps(index))
    assert sentence in str(refusal(sharded))


def test_tensor_that_no_index_or_two_files_have_is_refused(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (sharded / INDEX).write_text(json.dumps(index))
    assert "has 'model.norm.weight', which its index does not list there" in str(refusal(sharded))
    (sharded / INDEX).unlink()
    load_model(sharded)  # what lies there is enough
    shutil.copy(sharded / "model-00001-of-00002.safetensors", sharded / "more.safetensors")
    caught = refusal(sharded)
    assert isinstance(caught, BrokenFile) and "in two files" in str(caught)
