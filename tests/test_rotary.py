"""engine/rotary.py: rotations as their definitions have them, and as mlx-lm turns."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.rope_utils import initialize_rope

from engine.config import ModelConfig, RopeScaling
from engine.rotary import rotary

SCALINGS = {
    "plain": None,
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 8.0, 64, 1.0, 4.0),
    "yarn": RopeScaling("yarn", 4.0, 64),
    "yarn with mscale": RopeScaling("yarn", 16.0, 32, beta_fast=16, beta_slow=2, mscale=0.7, mscale_all_dim=0.3),
}
SPELLED = {
    "plain": None,
    "linear": {"type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn with mscale": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 0.7,
        "mscale_all_dim": 0.3,
    },
}


def config(scaling: RopeScaling | None, head_dim: int = 64) -> ModelConfig:
    return ModelConfig("llama", 256, 64, 128, 2, 4, 2, head_dim, 1e-5, 10000.0, 512, True, scaling)


def some_rows(count: int, head_dim: int = 64) -> mx.array:
    return mx.array(np.random.default_rng(0).standard_normal((count, 3, head_dim)), mx.float32)


@pytest.mark.parametrize("kind", SCALINGS)
def test_every_row_turns_as_in_mlx_lm(kind: str) -> None:
    rope = initialize_rope(64, 10000.0, False, SPELLED[kind], 512)
    x = some_rows(40)
    ours = rotary(config(SCALINGS[kind]))(x, mx.arange(100, 140))
    theirs = rope(x.swapaxes(0, 1)[None], offset=100)[0].swapaxes(0, 1)
    np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=1e-4)


def test_a_pair_turns_by_its_position_over_its_wavelength() -> None:
    x, positions = some_rows(5), [0, 1, 7, 300, 511]
    turned = np.array(rotary(config(None))(x, mx.array(positions)))
    low, high = np.array(x, np.float64)[..., :32], np.array(x, np.float64)[..., 32:]
    angle = np.array(positions)[:, None, None] / 10000.0 ** (np.arange(32) / 32)
    wanted = np.concatenate(
        [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)], axis=-1
    )
    np.testing.assert_allclose(turned, wanted, atol=1e-4)


def test_position_zero_turns_nothing() -> None:
    x = some_rows(2)
    np.testing.assert_allclose(np.array(rotary(config(None))(x, mx.array([0, 0]))), np.array(x), atol=1e-6)


def test_linear_scaling_divides_positions() -> None:
    x = some_rows(4)
    scaled = rotary(config(SCALINGS["linear"]))(x, mx.array([0, 4, 8, 12]))
    plain = rotary(config(None))(x, mx.arange(4))
    np.testing.assert_allclose(np.array(scaled), np.array(plain), atol=1e-5)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    plain, scaled = rotary(config(None)), rotary(config(SCALINGS["llama3"]))
    ratio = np.array(scaled.wavelengths) / np.array(plain.wavelengths)
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(8)
    assert (np.diff(ratio) >= -1e-5).all()


def test_a_row_turns_alone_as_beside_others() -> None:
    x, positions = some_rows(6), mx.array([5, 400, 3, 3, 90, 17])
    turn = rotary(config(SCALINGS["yarn"]))
    together = np.array(turn(x, positions))
    for row in range(6):
        np.testing.assert_array_equal(np.array(turn(x[row : row + 1], positions[row : row + 1]))[0], together[row])
