"""config.json as families write it, and as nobody should."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config import RopeScaling
from engine.refusal import BrokenFile, Unsupported
from loaders.config import parse_config, read_config
from loaders.quantization import Format
from tests.tiny import FAMILIES, tiny_config


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_of_every_family_arrive(family: str) -> None:
    model = parse_config(tiny_config(family)).model
    assert (model.architecture, model.vocab_size, model.hidden_size, model.intermediate_size) == (family, 256, 64, 128)
    assert (model.num_layers, model.num_heads, model.num_kv_heads) == (2, 4, 2)
    assert model.head_dim == (32 if family == "qwen3" else 16)
    assert (model.rms_norm_eps, model.rope_theta, model.max_position) == (1e-5, 10000.0, 512)
    assert model.tie_word_embeddings == (family in ("llama", "qwen3"))
    assert model.rope_scaling is None and model.sliding_window is None
    assert model.eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "gemma3"}, "architecture is 'gemma3'; known are llama, mistral, qwen2, qwen3"),
        ({"model_type": ["llama"]}, r"architecture is \['llama'\]"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; a whole number from 1 to 1024"),
        ({"num_hidden_layers": 1e9}, "num_hidden_layers is 1000000000.0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_key_value_heads": 3}, "4 heads do not divide among 3"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"head_dim": 15}, "head_dim is 15; rotary embedding wants an even one"),
        ({"vocab_size": 10**400}, "vocab_size is a number of"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"rope_theta": 10**400}, "rope_theta is a number of"),
        ({"rope_theta": "big"}, "rope_theta is 'big'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; true or false"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_traditional": True}, "rope_traditional"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"eos_token_id": [1, -1]}, r"eos_token_id is \[1, -1\]"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; an object"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2}},
            "rope scaling is 'longrope'; known are default, linear",
        ),
        ({"rope_scaling": {"type": "linear"}}, "factor None"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope factor is 0.5"),
        ({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4.0}}, "low_freq_factor is 4.0"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": 3.0}}, "attention_factor 3.0"),
        ({"rope_scaling": {"type": "yarn", "factor": 4, "truncate": False}}, "truncate"),
        ({"quantization": 4}, "quantization is a int; an object"),
        ({"quantization": {"bits": 3.5, "group_size": 64}}, "bits 3.5; a whole number"),
        ({"quantization": {"bits": 7, "group_size": 64}}, "7 bits; known are 2, 3, 4, 5, 6, 8"),
        ({"quantization": {"bits": 4, "group_size": 48}}, "groups of 48; known are 32, 64, 128"),
        ({"quantization": {"bits": 4}}, "group_size None"),
        ({"quantization": {"bits": 4, "group_size": 64, "mode": "int4"}}, "mode is 'int4'; known are affine"),
        ({"quantization": {"bits": 4, "group_size": 64, "mode": [4]}}, "the mode \\[4\\]"),
        ({"quantization": {"bits": 4, "group_size": 64, "mode": "nvfp4"}}, "nvfp4 has 4 bits in groups of 16"),
        ({"quantization": {"bits": 4, "group_size": 64, "lm_head": 8}}, "quantization of 'lm_head' is 8"),
        ({"quantization": {"bits": 4, "group_size": 64, "lm_head": {"bits": 1, "group_size": 64}}}, "1 bits"),
        ({"quantization_config": {"quant_method": "gptq", "group_size": 128}}, "quantization method is 'gptq'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Unsupported, match=sentence) as caught:
        parse_config(tiny_config("llama", **changes))
    assert "\n" not in caught.value.message and len(caught.value.message) < 300


def test_code_that_a_config_names_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    changes = {"model_file": "evil.py", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama", **changes)))
    assert read_config(tmp_path) == parse_config(tiny_config("llama"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not JSON"),
        (b"[]", "holds a list"),
        (b'{"model_type":"llama","model_type":"qwen2"}', "the name 'model_type' twice"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_json_is_refused_in_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BrokenFile, match=sentence):
        read_config(tmp_path)


LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("word", ["type", "rope_type"])
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_rope_scaling_is_read_in_every_spelling(name: str, word: str) -> None:
    def scaling(kind: str, **settings: Any) -> RopeScaling | None:
        return parse_config(tiny_config("llama", **{name: {word: kind, **settings}})).model.rope_scaling

    assert scaling("default") is None
    assert scaling("linear", factor=2) == RopeScaling("linear", 2.0)
    assert scaling("llama3", **LLAMA3) == RopeScaling("llama3", 32.0, 8192)
    assert scaling("yarn", factor=4.0, beta_fast=16) == RopeScaling("yarn", 4.0, 512, beta_fast=16.0)


def test_theta_inside_rope_parameters_counts_where_there_is_no_other() -> None:
    config = tiny_config("qwen3", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    assert parse_config(config).model.rope_theta == 10000.0
    assert parse_config(config | {"rope_theta": None}).model.rope_theta == 1e6
    assert parse_config(config | {"rope_theta": None, "rope_scaling": None}).model.rope_theta == 1e6


def test_yarn_stretches_the_context() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert parse_config(tiny_config("qwen2", rope_scaling=yarn)).model.max_position == 2048


def test_window_counts_for_mistral_and_for_qwen_only_if_it_says_so() -> None:
    def window(family: str, **changes: Any) -> int | None:
        return parse_config(tiny_config(family, sliding_window=128, **changes)).model.sliding_window

    assert window("mistral") == 128
    assert parse_config(tiny_config("mistral", sliding_window=None)).model.sliding_window is None
    assert window("llama") is None
    assert window("qwen2") is window("qwen2", use_sliding_window=False) is None
    assert window("qwen3", use_sliding_window=True, max_window_layers=0) == 128
    assert window("qwen2", use_sliding_window=True, max_window_layers=2) is None
    assert window("mistral", layer_types=["full_attention"] * 2) is None
    assert window("qwen3", layer_types=["sliding_attention"] * 2) == 128
    with pytest.raises(Unsupported, match="a part of the layers"):
        window("qwen2", use_sliding_window=True, max_window_layers=1)
    with pytest.raises(Unsupported, match="layer_types"):
        window("qwen2", layer_types=["chunked_attention"])


def test_generation_config_has_the_last_word_on_what_ends_a_text() -> None:
    config = tiny_config("qwen2", eos_token_id=[5, 6])
    assert parse_config(config).model.eos_token_ids == (5, 6)
    assert parse_config(config, {"eos_token_id": 7}).model.eos_token_ids == (7,)
    assert parse_config(config, {"eos_token_id": None}).model.eos_token_ids == (5, 6)
    assert parse_config(config | {"eos_token_id": None}).model.eos_token_ids == ()


NAMED: dict[str, Any] = {"eos_token": "<end>"}


def listed(token: object, content: str = "<end>") -> dict[str, Any]:
    return {"added_tokens": [{"id": token, "content": content, "special": True}]}


@pytest.mark.parametrize(
    ("files", "endings"),
    [
        ({}, (5,)),
        ({"tokenizer_config": NAMED | {"added_tokens_decoder": {"9": {"content": "<end>"}}}}, (5, 9)),
        ({"tokenizer_config": {"eos_token": {"content": "<end>"}}, "tokenizer": listed(9)}, (5, 9)),
        ({"special_tokens_map": NAMED, "tokenizer": listed(9)}, (5, 9)),
        ({"tokenizer_config": NAMED, "tokenizer": {"model": {"vocab": {"<end>": 9}}}}, (5, 9)),
        ({"tokenizer_config": NAMED, "tokenizer": listed(5)}, (5,)),
        ({"tokenizer_config": NAMED, "tokenizer": listed(256)}, (5,)),  # beyond the vocabulary
        ({"tokenizer_config": NAMED, "tokenizer": listed("9")}, (5,)),
        ({"tokenizer_config": NAMED, "tokenizer": listed(9, "<other>")}, (5,)),
        ({"tokenizer_config": NAMED | {"added_tokens_decoder": {"x": 1, "9": []}}}, (5,)),
    ],
)
def test_what_the_tokenizer_names_as_its_last_token_ends_a_text_too(
    tmp_path: Path, files: dict[str, object], endings: tuple[int, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("qwen2", eos_token_id=5)))
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert read_config(tmp_path).model.eos_token_ids == endings
    (tmp_path / "tokenizer.json").write_text("{")  # refused where a tokenizer is wanted
    assert 5 in read_config(tmp_path).model.eos_token_ids


def test_modules_with_a_bias_follow_from_family_and_flags() -> None:
    assert parse_config(tiny_config("qwen2")).biased == {"q_proj", "k_proj", "v_proj"}
    assert parse_config(tiny_config("llama")).biased == set()
    assert parse_config(tiny_config("llama", attention_bias=True)).biased == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert parse_config(tiny_config("llama", mlp_bias=True)).biased == {"gate_proj", "up_proj", "down_proj"}


def test_quantization_has_exceptions_by_module() -> None:
    settings = {"bits": 4, "group_size": 64, "a": False, "b": True, "c": {"bits": 8, "group_size": 32}}
    for name in ("quantization", "quantization_config"):
        quantization = parse_config(tiny_config("llama", **{name: settings})).quantization
        assert quantization.format_of("a") is None
        assert quantization.format_of("b") == quantization.format_of("z") == Format(4, 64)
        assert quantization.format_of("c") == Format(8, 32)
    modes = parse_config(tiny_config("llama", quantization={"mode": "mxfp8"})).quantization
    assert modes.default == Format(8, 32, "mxfp8")
