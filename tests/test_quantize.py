"""Quantized checkpoints: read by mlx_lm and by us, equal to MLX's own quantization, written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import mlx_lm.utils
import pytest
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, models, pre_tokenizers

from engine.quantized import FLOAT_FORMATS, Mode, QuantizedTensor, quantize
from engine.refusal import BadRequest, BrokenFile, Refusal, Unsupported
from loaders import quantize as quantize_module
from loaders.checkpoint import load_model
from loaders.progress import Progress, ignore_progress
from loaders.quantize import quantize_checkpoint
from loaders.shards import INDEX
from tests.tiny import FAMILIES, write_checkpoint
from tests.tiny_gguf import write_gguf


@pytest.mark.parametrize(
    ("bits", "group_size", "mode"),
    [(4, 64, "affine"), (8, 32, "affine"), (3, 32, "affine"), (4, 32, "mxfp4"), (8, 32, "mxfp8"), (4, 16, "nvfp4")],
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_result_is_what_mlx_lm_makes(
    tmp_path: Path, family: str, dtype: mx.Dtype, bits: int, group_size: int, mode: Mode
) -> None:
    source = write_checkpoint(tmp_path / "float", family, dtype=dtype)
    target = quantize_checkpoint(source, tmp_path / "quantized", bits, group_size, mode)
    reference, config = mlx_lm.utils.load_model(source)
    reference, config = mlx_lm.utils.quantize_model(reference, config, group_size, bits, mode)
    ours, our_config = mlx_lm.utils.load_model(target)
    expected: dict[str, mx.array] = dict(tree_flatten(reference.parameters()))
    found: dict[str, mx.array] = dict(tree_flatten(ours.parameters()))
    assert our_config["quantization"] == our_config["quantization_config"] == config["quantization"]
    assert found.keys() == expected.keys()
    assert all(
        mx.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in expected.items()
    )


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_where_nothing_is_said_a_mode_has_its_own_bits_and_groups(tmp_path: Path, mode: Mode) -> None:
    target = quantize_checkpoint(write_checkpoint(tmp_path / "float", "llama"), tmp_path / "quantized", mode=mode)
    bits, group_size = FLOAT_FORMATS.get(mode, (4, 64))
    settings = json.loads((target / "config.json").read_text())["quantization"]
    assert settings == {"group_size": group_size, "bits": bits, "mode": mode}


def test_result_is_loaded_by_us(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "float", "qwen2")
    target = quantize_checkpoint(source, tmp_path / "quantized", bits=4, group_size=32)
    ours, floats = load_model(target), load_model(source)
    assert ours.config == floats.config and ours.fingerprint != floats.fingerprint
    weight = ours.weights.layers[1].gate_proj.weight
    expected = quantize(floats.weights.layers[1].gate_proj.weight, 4, 32)
    assert isinstance(weight, QuantizedTensor) and weight.biases is not None and expected.biases is not None
    assert mx.array_equal(weight, expected) and mx.array_equal(weight.scales, expected.scales)
    assert mx.array_equal(ours.weights.norm, floats.weights.norm)


def test_shards_are_bounded_and_listed_in_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_module, "MAX_SHARD_BYTES", 20_000)
    source = write_checkpoint(tmp_path / "float", "mistral", num_shards=3)
    reports: list[Progress] = []
    target = quantize_checkpoint(source, tmp_path / "quantized", on_progress=reports.append)
    shards = sorted(target.glob("*.safetensors"))
    assert len(shards) > 2 and all(shard.stat().st_size < 25_000 for shard in shards)
    index = json.loads((target / INDEX).read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    assert reports[-1].done == reports[-1].total
    load_model(target)
    mlx_lm.utils.load_model(target)


def test_matrix_whose_rows_do_not_divide_stays_in_floats(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "float", "llama", intermediate_size=96)
    target = quantize_checkpoint(source, tmp_path / "quantized", 4, 64)
    layer = load_model(target).weights.layers[0]
    assert isinstance(layer.up_proj.weight, QuantizedTensor)
    assert not isinstance(layer.down_proj.weight, QuantizedTensor)
    mlx_lm.utils.load_model(target)


def test_tied_head_that_was_stored_is_not_written(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "float", "llama", tie_word_embeddings=False)
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": True}
    (source / "config.json").write_text(json.dumps(config))
    target = quantize_checkpoint(source, tmp_path / "quantized")
    tensors: Any = mx.load(str(target / "model.safetensors"))
    assert "lm_head.weight" not in tensors and "model.embed_tokens.scales" in tensors


def test_tokenizer_comes_along_and_mlx_lm_generates(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "float", "qwen3")
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(256)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (source / "README.md").write_text("stays")
    target = quantize_checkpoint(source, tmp_path / "quantized", 4, 32)
    assert set(os.listdir(target)) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
    }
    model, reader = mlx_lm.load(str(target))[:2]
    assert len(mlx_lm.generate(model, reader, "w1 w2 w3", max_tokens=4).split()) <= 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"bits": 7}, "7 bits; known are"),
        ({"group_size": 48}, "groups of 48"),
        ({"mode": "int4"}, "mode is 'int4'"),
        ({"bits": 8, "mode": "mxfp4"}, "mxfp4 has 4 bits"),
        ({"group_size": 128}, "no matrix whose rows divide into groups of 128"),
    ],
)
def test_format_that_cannot_be_is_refused(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    source = write_checkpoint(tmp_path / "float", "llama", intermediate_size=96)
    with pytest.raises(Unsupported, match=sentence):
        quantize_checkpoint(source, tmp_path / "quantized", **settings)
    assert os.listdir(tmp_path) == ["float"]


def test_what_is_there_is_not_overwritten_and_what_is_quantized_not_quantized(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "quantized", "llama", {"bits": 4, "group_size": 32})
    with pytest.raises(BadRequest, match="is there already"):
        quantize_checkpoint(source, source)
    with pytest.raises(Unsupported, match="is quantized already"):
        quantize_checkpoint(source, tmp_path / "again")
    with pytest.raises(Unsupported, match="is a GGUF file"):
        quantize_checkpoint(write_gguf(tmp_path / "x.gguf", "llama"), tmp_path / "again")


def test_broken_source_or_target_leaves_nothing(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "float", "llama", num_shards=2)
    (tmp_path / "file").touch()
    with pytest.raises(BrokenFile, match="cannot be written"):
        quantize_checkpoint(source, tmp_path / "file" / "target")

    def stop(progress: Progress) -> None:
        if progress.stage.startswith("quantizing model.norm"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, tmp_path / "target", on_progress=stop)
    (source / "model-00002-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(Refusal, match="model-00002-of-00002"):
        quantize_checkpoint(source, tmp_path / "target", on_progress=ignore_progress)
    assert sorted(os.listdir(tmp_path)) == ["file", "float"]
