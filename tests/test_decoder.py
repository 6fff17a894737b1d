"""engine/decoder.py: every family computes what mlx-lm computes for the same checkpoint."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model as load_reference

from engine.adapter import Adapter, LowRank
from engine.weights import LINEAR_MODULES, Model
from loaders.checkpoint import load_model
from tests.engines import ask, record_logits, serve, serve_one, tiny_engine
from tests.tiny import FAMILIES, write_checkpoint

FORMATS: dict[str, tuple[dict[str, Any] | None, mx.Dtype]] = {
    "4-bit": ({"group_size": 64, "bits": 4}, mx.float32),
    "8-bit": ({"group_size": 32, "bits": 8}, mx.float32),
    "mixed": (
        {
            "group_size": 32,
            "bits": 4,
            "model.embed_tokens": {"group_size": 64, "bits": 8},
            "model.layers.0.self_attn.v_proj": {"group_size": 32, "bits": 6},
            "model.layers.1.mlp.down_proj": False,
        },
        mx.float32,
    ),
    "bf16": (None, mx.bfloat16),
}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
COUNT = 64


def reference_of(directory: Path) -> Any:
    """mlx-lm's model of a checkpoint, in float32."""
    model, _ = load_reference(directory)
    model.set_dtype(mx.float32)
    return model


def both(
    directory: Path, family: str, quantization: Any = None, dtype: mx.Dtype = mx.float32, **changes: Any
) -> tuple[Model, Any]:
    write_checkpoint(directory, family, quantization, dtype, **changes)
    return load_model(directory), reference_of(directory)


def assert_same(model: Model, reference: Any, adapter: Adapter | None = None, generates: bool = True) -> None:
    """Greedy text is the same, and the logits of each of its tokens to 1e-4."""
    engine = tiny_engine(model=model, max_batch_tokens=50, block_size=8)
    log = record_logits(engine)
    if adapter is not None:
        engine.attach("x", adapter)
    request = ask("r", 40, max_tokens=COUNT, adapter=None if adapter is None else "x")
    tokens = serve(engine, [ask("stranger", 33), request])["r"].tokens
    assert len(set(tokens)) > 5
    if generates:
        greedy = generate_step(mx.array(request.prompt), reference, max_tokens=COUNT)
        assert tokens == [int(token) for token, _ in greedy]
    theirs = np.array(reference(mx.array([[*request.prompt, *tokens[:-1]]]))[0, 39:])
    ours = np.array(mx.stack([log["r", 0, position] for position in range(COUNT)]))
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    assert tokens == theirs.argmax(axis=-1).tolist()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_text_are_mlx_lm_s(family: str, form: str, tmp_path: Path) -> None:
    assert_same(*both(tmp_path, family, *FORMATS[form]))


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_stretched_positions_are_mlx_lm_s(family: str, kind: str, tmp_path: Path) -> None:
    assert_same(*both(tmp_path, family, rope_scaling=SCALINGS[kind]))


@pytest.mark.parametrize("window", [1, 7, 50, 500])
def test_a_sliding_window_is_mlx_lm_s(window: int, tmp_path: Path) -> None:
    model, reference = both(tmp_path, "mistral", sliding_window=window)
    assert model.config.sliding_window == window
    for layer in reference.model.layers:  # it takes the window only from configs that name layers one by one
        layer.use_sliding = True
    reference.model.swa_idx, reference.model.sliding_window = 0, window
    assert_same(model, reference, generates=False)


@pytest.mark.parametrize("changes", [{"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": False}])
def test_biases_and_heads_of_their_own_are_mlx_lm_s(changes: dict[str, Any], tmp_path: Path) -> None:
    assert_same(*both(tmp_path, "llama", {"group_size": 32, "bits": 4}, **changes))


@pytest.mark.parametrize("form", ["4-bit", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_an_adapter_of_mlx_lm_text_is_mlx_lm_s(family: str, form: str, tmp_path: Path) -> None:
    model, reference = both(tmp_path, family, *FORMATS[form])
    linear_to_lora_layers(reference, 1, {"rank": 4, "scale": 20.0, "dropout": 0.0, "keys": None})
    rng, modules = np.random.default_rng(1), {}
    for block in (reference.layers[1].self_attn, reference.layers[1].mlp):
        for name in set(LINEAR_MODULES) & set(block):
            linear = block[name]
            linear.lora_b = mx.array(rng.standard_normal(linear.lora_b.shape) / 40, mx.float32)
            modules[1, name] = LowRank(linear.lora_a, linear.lora_b, linear.scale)
    assert len(modules) == 7
    plain = serve_one(tiny_engine(model=model), ask("r", 40)).tokens
    assert_same(model, reference, Adapter(modules, "mlx_lm"))
    assert plain != [int(token) for token, _ in generate_step(mx.array(ask("r", 40).prompt), reference, max_tokens=12)]


def test_keys_and_values_in_eight_bits_stay_near(tmp_path: Path) -> None:
    model, reference = both(tmp_path, "qwen3", {"group_size": 32, "bits": 4})
    engine = tiny_engine(model=model, cache_dtype="int8")
    log = record_logits(engine)
    request = ask("r", 40, max_tokens=30)
    tokens = serve_one(engine, request).tokens
    theirs = np.array(reference(mx.array([[*request.prompt, *tokens[:-1]]]))[0, 39:])
    ours = np.array(mx.stack([log["r", 0, position] for position in range(30)]))
    error = np.abs(ours - theirs).max(axis=-1) / np.abs(theirs).max(axis=-1)
    assert 1e-5 < error.max() < 0.05
