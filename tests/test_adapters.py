"""loaders/adapters.py: each format's adapters multiply as their makers mean it, and come back bit for bit."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model as mlx_lm_load_model

from engine.adapter import Adapter, LowRank
from engine.config import ModelConfig, module_sizes
from engine.refusal import BadRequest, BrokenFile, Refusal, Unsupported
from engine.weights import BLOCK_OF, LINEAR_MODULES
from loaders.adapters import describe_adapter, fingerprint, fits, load_adapter, save_adapter
from loaders.config import read_config
from loaders.peft_adapter import alpha_of, compiled
from tests.tiny import write_checkpoint

Format = Literal["mlx_lm", "peft"]
ODD_SCALE = 1.9  # no number divided by 9 gives it
FORMATS: tuple[Format, Format] = ("mlx_lm", "peft")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), "qwen3", num_hidden_layers=3)


@pytest.fixture(scope="module")
def base(checkpoint: Path) -> ModelConfig:
    return read_config(checkpoint).model


def normal(*shape: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)).astype(dtype)


def write_peft(directory: Path, tensors: dict[str, mx.array] | None = None, **config: Any) -> Path:
    """A PEFT adapter of rank 4 on one module, 64 to 128, and whatever else its config says."""
    directory.mkdir(exist_ok=True)
    if tensors is None:
        prefix = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
        tensors = {f"{prefix}A.weight": normal(4, 64), f"{prefix}B.weight": normal(128, 4, seed=1)}
    mx.save_safetensors(str(directory / "adapter_model.safetensors"), tensors)
    usual = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "base_model_name_or_path": "owner/base", "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(usual | config))
    return directory


def write_mlx_lm(directory: Path, tensors: dict[str, mx.array] | None = None, **config: Any) -> Path:
    """The same adapter in mlx_lm's format, with the scale 20."""
    directory.mkdir(exist_ok=True)
    if tensors is None:
        prefix = "model.layers.1.self_attn.q_proj.lora_"
        tensors = {f"{prefix}a": normal(4, 64).T, f"{prefix}b": normal(128, 4, seed=1).T}
    mx.save_safetensors(str(directory / "adapters.safetensors"), tensors)
    usual = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0}}
    (directory / "adapter_config.json").write_text(json.dumps(usual | config))
    return directory


def random_adapter(base: ModelConfig, dtype: mx.Dtype = mx.float32, scale: float = 20.0) -> Adapter:
    """Ranks that differ by module, and some modules of some layers left out."""
    modules = {}
    for number, (module, (num_in, num_out)) in enumerate(module_sizes(base).items()):
        for layer in range(base.num_layers):
            if (layer + number) % 3:
                rank = 1 + (layer + number) % 5
                a, b = normal(num_in, rank, seed=number, dtype=dtype), normal(rank, num_out, seed=layer, dtype=dtype)
                modules[layer, module] = LowRank(a, b, scale)
    return Adapter(modules, fingerprint(modules))


def bits(array: mx.array) -> bytes:
    return bytes(np.ascontiguousarray(np.asarray(array.view(mx.uint16 if array.itemsize == 2 else mx.uint32))).data)


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.modules.keys() == other.modules.keys()
    for place, pair in one.modules.items():
        found = other.modules[place]
        assert (found.scale, found.a.dtype, found.a.shape) == (pair.scale, pair.a.dtype, pair.a.shape)
        assert (bits(found.a), bits(found.b)) == (bits(pair.a), bits(pair.b))
    assert one.version == other.version


# What an adapter multiplies with


def test_mlx_lm_scale_stands_as_it_is(tmp_path: Path) -> None:
    pair = load_adapter(write_mlx_lm(tmp_path)).modules[1, "q_proj"]
    assert (pair.scale, pair.rank, pair.a.shape, pair.b.shape) == (20.0, 4, (64, 4), (4, 128))


def test_mlx_lm_adapter_changes_a_module_as_in_mlx_lm(tmp_path: Path, checkpoint: Path, base: ModelConfig) -> None:
    model, _ = mlx_lm_load_model(checkpoint)
    keys = [BLOCK_OF[module] + module for module in LINEAR_MODULES]
    parameters = {"rank": 4, "scale": 20.0, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, 2, parameters)
    tensors = {
        f"model.layers.{layer}.{key}.lora_{half}": normal(
            *getattr(module_of(model, layer, key), f"lora_{half}").shape, seed=layer
        )
        for layer in (1, 2)
        for key in keys
        for half in "ab"
    }
    directory = write_mlx_lm(tmp_path, tensors, num_layers=2, lora_parameters=parameters)
    model, _ = mlx_lm_load_model(checkpoint)
    plain, _ = mlx_lm_load_model(checkpoint)
    load_adapters(model, str(directory))
    adapter = load_adapter(directory, model_config=base)
    assert len(adapter.modules) == 14
    for (layer, module), pair in adapter.modules.items():
        key = BLOCK_OF[module] + module
        x = normal(5, pair.a.shape[0], seed=7)
        theirs = module_of(model, layer, key)(x)
        ours = module_of(plain, layer, key)(x) + pair.scale * (x @ pair.a) @ pair.b
        assert mx.allclose(ours, theirs, rtol=1e-4, atol=1e-3)
        assert mx.abs(theirs - module_of(plain, layer, key)(x)).max() > 1


def module_of(model: Any, layer: int, key: str) -> Any:
    block, module = key.split(".")
    return getattr(getattr(model.layers[layer], block), module)


@pytest.mark.parametrize(("use_rslora", "divisor"), [(False, 4.0), (True, 2.0)])
def test_peft_adapter_multiplies_as_written_out_by_hand(tmp_path: Path, use_rslora: bool, divisor: float) -> None:
    adapter = load_adapter(write_peft(tmp_path, use_rslora=use_rslora))
    pair = adapter.modules[1, "q_proj"]
    big_a, big_b = np.asarray(normal(4, 64), np.float64), np.asarray(normal(128, 4, seed=1), np.float64)
    x = np.asarray(normal(3, 64, seed=2), np.float64)
    by_hand = np.zeros((3, 128))
    for row in range(3):
        for rank in range(4):
            by_hand[row] += 6.0 / divisor * (x[row] @ big_a[rank]) * big_b[:, rank]
    ours = pair.scale * (mx.array(x.astype(np.float32)) @ pair.a) @ pair.b
    assert np.allclose(np.asarray(ours), by_hand, rtol=1e-4, atol=1e-4)


def test_rslora_divides_by_the_root_of_the_rank(tmp_path: Path) -> None:
    prefix = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    tensors = {f"{prefix}A.weight": normal(7, 64), f"{prefix}B.weight": normal(128, 7)}
    pair = load_adapter(write_peft(tmp_path, tensors, r=7, use_rslora=True)).modules[0, "up_proj"]
    assert pair.scale == 6 / math.sqrt(7)


def test_peft_patterns_set_ranks_and_alphas_by_module(tmp_path: Path) -> None:
    tensors: dict[str, mx.array] = {}
    for layer, module, rank in ((0, "self_attn.q_proj", 4), (1, "self_attn.q_proj", 2), (0, "mlp.up_proj", 8)):
        prefix = f"base_model.model.model.layers.{layer}.{module}.lora_"
        tensors |= {f"{prefix}A.weight": normal(rank, 64), f"{prefix}B.weight": normal(128, rank)}
    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 8}, "alpha_pattern": {"^model.*mlp.*": 32}}
    adapter = load_adapter(write_peft(tmp_path, tensors, **patterns))
    assert {place: (pair.rank, pair.scale) for place, pair in adapter.modules.items()} == {
        (0, "q_proj"): (4, 1.5),
        (1, "q_proj"): (2, 3.0),
        (0, "up_proj"): (8, 4.0),
    }


def test_a_pattern_matches_the_end_of_a_name() -> None:
    path = "model.layers.11.self_attn.q_proj"
    for pattern, matches in (("q_proj", True), ("proj", False), ("layers.1.self_attn.q_proj", False), ("l.*", True)):
        assert bool(compiled(pattern).match(path)) == matches


@pytest.mark.parametrize("write", [write_mlx_lm, write_peft])
def test_a_given_scale_replaces_the_adapters_own(tmp_path: Path, write: Callable[..., Path]) -> None:
    own, given_one = load_adapter(write(tmp_path)), load_adapter(write(tmp_path), 0.5)
    assert given_one.modules[1, "q_proj"].scale == 0.5
    assert own.version != given_one.version
    for wrong in (math.nan, math.inf, "2", True, 10**400):
        with pytest.raises(BadRequest, match="scale is"):
            load_adapter(tmp_path, wrong)  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match=r"scale is -1e\+38: it would multiply by -1e\+38; at most 10000 is taken"):
        load_adapter(tmp_path, -1e38)


@pytest.mark.parametrize("prefix", ["base_model.model.layers", "base_model.model.model.layers"])
@pytest.mark.parametrize("suffix", ["weight", "default.weight"])
def test_peft_names_of_all_times_are_read(tmp_path: Path, prefix: str, suffix: str) -> None:
    tensors = {
        f"{prefix}.0.mlp.down_proj.lora_A.{suffix}": normal(4, 128),
        f"{prefix}.0.mlp.down_proj.lora_B.{suffix}": normal(64, 4),
    }
    assert load_adapter(write_peft(tmp_path, tensors)).modules.keys() == {(0, "down_proj")}


# Round trips


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_adapter_survives_a_round_trip_bit_for_bit(
    tmp_path: Path, base: ModelConfig, format: Format, dtype: mx.Dtype
) -> None:
    adapter = random_adapter(base, dtype)
    save_adapter(tmp_path / "new" / "one", adapter, format, base="owner/base")
    assert_same(load_adapter(tmp_path / "new" / "one", model_config=base), adapter)


def test_adapter_survives_both_formats_one_after_the_other(tmp_path: Path, base: ModelConfig) -> None:
    adapter = random_adapter(base)
    save_adapter(tmp_path / "a", adapter, "peft")
    save_adapter(tmp_path / "b", load_adapter(tmp_path / "a"), "mlx_lm")
    assert_same(load_adapter(tmp_path / "b"), adapter)


@given(st.floats(1e-30, 1e4), st.integers(1, 64))
@example(ODD_SCALE, 9)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_scale_survives_either_format(tmp_path: Path, scale: float, rank: int) -> None:
    modules = {(0, "q_proj"): LowRank(normal(64, rank), normal(rank, 128), scale)}
    for format in FORMATS:
        save_adapter(tmp_path / format, Adapter(modules, fingerprint(modules)), format)
        assert_same(load_adapter(tmp_path / format), Adapter(modules, fingerprint(modules)))


def test_some_scale_is_no_quotient_and_is_told_beside_it() -> None:
    assert alpha_of(ODD_SCALE, 9) / 9 != ODD_SCALE


def test_scales_that_differ_go_into_peft_but_not_into_mlx_lm(tmp_path: Path, base: ModelConfig) -> None:
    modules = dict(random_adapter(base).modules)
    modules[1, "q_proj"] = LowRank(normal(64, 3), normal(3, 128), 0.3)
    adapter = Adapter(modules, fingerprint(modules))
    save_adapter(tmp_path, adapter, "peft")
    assert_same(load_adapter(tmp_path), adapter)
    with pytest.raises(Unsupported, match="has one scale for all"):
        save_adapter(tmp_path / "other", adapter, "mlx_lm")


def test_saved_adapter_loads_in_mlx_lm(tmp_path: Path, checkpoint: Path, base: ModelConfig) -> None:
    modules = {(0, "q_proj"): LowRank(normal(64, 4), normal(4, 128), 3.0)}
    save_adapter(tmp_path, Adapter(modules, fingerprint(modules)), "mlx_lm")
    model, _ = mlx_lm_load_model(checkpoint)
    load_adapters(model, str(tmp_path))
    q_proj = model.layers[0].self_attn.q_proj
    assert q_proj.scale == 3.0 and mx.array_equal(q_proj.lora_a, modules[0, "q_proj"].a)


def test_version_tells_contents_apart(tmp_path: Path, base: ModelConfig) -> None:
    adapter = random_adapter(base)
    changed = dict(adapter.modules)
    pair = changed[1, "q_proj"]
    changed[1, "q_proj"] = LowRank(pair.a + 1e-6, pair.b, pair.scale)
    assert len({adapter.version, fingerprint(changed), fingerprint(random_adapter(base, scale=1.0).modules)}) == 3


# What is refused


Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
PAIR = {f"{Q_PROJ}A.weight": normal(4, 64), f"{Q_PROJ}B.weight": normal(128, 4)}
EMBEDDING = {"base_model.model.model.embed_tokens.lora_embedding_A": normal(4, 64)}


@pytest.mark.parametrize(
    ("tensors", "config", "sentence"),
    [
        (None, {"use_dora": True}, "is a DoRA"),
        (None, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        (None, {"bias": "all"}, "trained biases too"),
        (None, {"lora_bias": True}, "lora_bias"),
        (None, {"fan_in_fan_out": True}, "transposed weights"),
        (None, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
        (None, {"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        (None, {"init_lora_weights": "pissa_niter_4"}, "changes the base too"),
        (None, {"novel_setting": 3}, "'novel_setting' = 3, which is not known"),
        (None, {"r": 8}, "has the rank 4 in the tensors and 8 in adapter_config.json"),
        (None, {"r": "4"}, "rank is '4'"),
        (None, {"lora_alpha": "6"}, "lora_alpha is '6'; a number"),
        (None, {"lora_alpha": 10**400}, "a finite number"),
        (
            None,
            {"lora_alpha": 2e300},
            r"rank 4 and the lora_alpha 2e\+300: it would multiply by 5e\+299; at most",
        ),
        (None, {"alpha_pattern": {"q_proj": -1e38}}, r"the lora_alpha -1e\+38: it would multiply by -2.5e\+37"),
        (None, {"alpha_pattern": {"(": 3}}, "has the pattern"),
        (None, {"alpha_pattern": {"(a+)+": 3}}, "too intricate"),
        (None, {"alpha_pattern": ["q_proj"]}, "must be an object"),
        ({}, {}, "has no tensors"),
        (PAIR | EMBEDDING, {}, "a change to the embedding"),
        (PAIR | {f"{Q_PROJ}magnitude_vector": normal(128)}, {}, "a magnitude of a DoRA"),
        (PAIR | {"base_model.model.lm_head.lora_A.weight": normal(4, 64)}, {}, "changes no linear module"),
        (PAIR | {"base_model.model.model.layers.1.mlp.q_proj.lora_A.weight": normal(4, 64)}, {}, "no linear module"),
        ({f"{Q_PROJ}A.weight": normal(4, 64)}, {}, "lora_a without its lora_b"),
        ({f"{Q_PROJ}B.weight": normal(64, 4)}, {}, "lora_b without its lora_a"),
        (PAIR | {f"{Q_PROJ}A.default.weight": normal(4, 64)}, {}, "its lora_a twice"),
        ({f"{Q_PROJ}A.weight": normal(4, 64), f"{Q_PROJ}B.weight": normal(128, 5)}, {}, "4 in lora_a and 5 in lora_b"),
        ({f"{Q_PROJ}A.weight": normal(4, 64, 1), f"{Q_PROJ}B.weight": normal(128, 4)}, {}, "has 3 dimensions"),
        ({f"{Q_PROJ}A.weight": normal(2000, 64), f"{Q_PROJ}B.weight": normal(128, 2000)}, {"r": 2000}, "1 to 1024"),
        ({name: array.astype(mx.int32) for name, array in PAIR.items()}, {}, "has the type I32"),
        (PAIR | {f"{Q_PROJ}A.weight": mx.full((4, 64), math.nan)}, {}, "not finite"),
        (PAIR | {f"{Q_PROJ}B.weight": mx.full((128, 4), math.inf)}, {}, "not finite"),
    ],
)
def test_peft_adapter_that_is_not_plain_lora_is_refused(
    tmp_path: Path, tensors: dict[str, mx.array] | None, config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Refusal, match=sentence) as caught:
        load_adapter(write_peft(tmp_path, tensors, **config))
    assert str(tmp_path) in caught.value.message and "\n" not in caught.value.message


MLX = "model.layers.0.mlp.up_proj."


@pytest.mark.parametrize(
    ("tensors", "config", "sentence"),
    [
        (None, {"fine_tune_type": "dora"}, "is a DoRA"),
        (None, {"fine_tune_type": "full"}, "fine_tune_type is 'full'"),
        (None, {"lora_parameters": {"rank": 4}}, "no lora_parameters.scale"),
        (None, {"lora_parameters": None}, "no lora_parameters.scale"),
        (None, {"lora_parameters": {"scale": "20"}}, "lora_parameters.scale is '20'"),
        (None, {"lora_parameters": {"scale": 1e38}}, r"rank 4 and the lora_parameters.scale 1e\+38: it would multiply"),
        ({f"{MLX}lora_a": normal(64, 4), f"{MLX}lora_b": normal(4, 128), f"{MLX}m": normal(128)}, {}, "magnitude"),
        ({"model.embed_tokens.lora_a": normal(256, 4)}, {}, "changes no linear module"),
        ({"model.layers.0.mlp.up_proj.weight": normal(128, 64)}, {}, "changes no linear module"),
        ({f"{MLX}lora_a": normal(64, 4)}, {}, "lora_a without its lora_b"),
    ],
)
def test_mlx_lm_adapter_that_is_not_plain_lora_is_refused(
    tmp_path: Path, tensors: dict[str, mx.array] | None, config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Refusal, match=sentence):
        load_adapter(write_mlx_lm(tmp_path, tensors, **config))


def test_what_is_no_adapter_is_refused_with_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(BrokenFile, match="is no adapter: a directory with adapter_config.json and"):
        load_adapter(tmp_path / "nowhere")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(Unsupported, match="a pickle"):
        load_adapter(tmp_path)
    write_peft(tmp_path)
    (tmp_path / "adapter_config.json").rename(tmp_path / "other.json")
    with pytest.raises(BrokenFile, match="without adapter_config.json"):
        load_adapter(tmp_path)
    write_mlx_lm(tmp_path)
    with pytest.raises(BrokenFile, match="not clear which"):
        load_adapter(tmp_path)


def test_adapter_of_another_base_is_refused_only_where_the_base_is_known(tmp_path: Path, base: ModelConfig) -> None:
    other = {f"{Q_PROJ}A.weight": normal(4, 96), f"{Q_PROJ}B.weight": normal(128, 4)}
    path = write_peft(tmp_path / "wide", other)
    load_adapter(path)
    with pytest.raises(Unsupported, match=r"q_proj maps 96 to 128; the model's maps 64 to 128"):
        load_adapter(path, model_config=base)
    deep = {name.replace("layers.1.", "layers.9."): array for name, array in PAIR.items()}
    with pytest.raises(Unsupported, match="it changes layer 9; the model has layers 0 to 2"):
        load_adapter(write_peft(tmp_path / "deep", deep), model_config=base)


def test_fits_says_why_not(tmp_path: Path, base: ModelConfig) -> None:
    adapter = random_adapter(base)
    assert fits(adapter, base) is None
    wrong = Adapter({(0, "o_proj"): LowRank(normal(64, 2), normal(2, 64), 1.0)}, "")
    assert fits(wrong, base) == "model.layers.0.self_attn.o_proj maps 64 to 64; the model's maps 128 to 64"
    save_adapter(tmp_path, wrong, "peft")
    assert fits(describe_adapter(tmp_path), base) == fits(wrong, base)


def test_an_adapter_without_modules_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="nothing to save"):
        save_adapter(tmp_path, Adapter({}, ""))
    with pytest.raises(BadRequest, match="'gguf'"):
        save_adapter(tmp_path, Adapter({}, ""), "gguf")  # type: ignore[arg-type]


# What is told


def test_description_reads_no_tensor(tmp_path: Path, base: ModelConfig) -> None:
    save_adapter(tmp_path, random_adapter(base), "mlx_lm", base="owner/base")
    found = describe_adapter(tmp_path)
    assert (found.format, found.base, found.rank, found.scale) == ("mlx_lm", "owner/base", 5, 20.0)
    assert found.layers == (0, 1, 2) and set(found.modules) == set(LINEAR_MODULES)
    path = tmp_path / "adapters.safetensors"
    assert found.num_bytes == path.stat().st_size


def test_description_tells_no_scale_where_they_differ(tmp_path: Path) -> None:
    modules = {(layer, "q_proj"): LowRank(normal(64, 2), normal(2, 128), 1.0 + layer) for layer in (0, 1)}
    save_adapter(tmp_path, Adapter(modules, ""), "peft")
    assert describe_adapter(tmp_path).scale is None
