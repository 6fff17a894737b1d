"""Rotary positions: the wavelengths of a model's rotation, stretched as its config asks. Pure arithmetic."""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.config import ModelConfig, RopeScaling


@dataclass(frozen=True, slots=True)
class Rotary:
    """Pair i (dimensions i and i + head_dim / 2) turns by position / wavelengths[i]."""

    wavelengths: mx.array  # (head_dim / 2,) float32
    magnitude: float  # yarn multiplies queries and keys by this

    def __call__(self, x: mx.array, positions: mx.array) -> mx.array:
        """Turn (T, heads, head_dim) by each row's own position."""
        if self.magnitude != 1.0:
            x = x * mx.array(self.magnitude, x.dtype)
        turned = mx.fast.rope(
            x[:, :, None, :],
            x.shape[-1],
            traditional=False,
            base=None,
            scale=1.0,
            offset=positions,
            freqs=self.wavelengths,
        )
        return turned.squeeze(2)


def rotary(config: ModelConfig) -> Rotary:
    """The rotation of a model."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    wavelengths = config.rope_theta**exponents
    scaling = config.rope_scaling
    magnitude = 1.0
    if scaling is not None:
        match scaling.kind:
            case "linear":
                wavelengths = wavelengths * scaling.factor
            case "llama3":
                wavelengths = stretch_llama3(wavelengths, scaling)
            case "yarn":
                wavelengths = stretch_yarn(wavelengths, scaling, config)
                magnitude = yarn_magnitude(scaling)
    return Rotary(mx.array(wavelengths.astype(np.float32)), magnitude)


def stretch_llama3(wavelengths: NDArray[np.float64], scaling: RopeScaling) -> NDArray[np.float64]:
    """Long waves are stretched, short ones kept, those between blended."""
    low = scaling.original_max_position / scaling.low_freq_factor
    high = scaling.original_max_position / scaling.high_freq_factor
    lengths = 2 * math.pi * wavelengths
    smooth = (scaling.original_max_position / lengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = wavelengths / ((1 - smooth) / scaling.factor + smooth)
    stretched = np.where(lengths > low, wavelengths * scaling.factor, wavelengths)
    return np.where((lengths <= low) & (lengths >= high), blended, stretched)


def stretch_yarn(wavelengths: NDArray[np.float64], scaling: RopeScaling, config: ModelConfig) -> NDArray[np.float64]:
    """As llama3, but the blend is a ramp over dimensions, between two counts of turns in the trained context."""
    dims, trained = config.head_dim, scaling.original_max_position

    def dimension_of(turns: float) -> float:
        return dims * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(dimension_of(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension_of(scaling.beta_slow)), dims - 1)
    ramp = np.clip((np.arange(dims // 2) - low) / max(high - low, 0.001), 0, 1)
    stretched = wavelengths * scaling.factor
    return (wavelengths * stretched) / (wavelengths * ramp + stretched * (1 - ramp))


def yarn_magnitude(scaling: RopeScaling) -> float:
    def magnitude(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

    return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
