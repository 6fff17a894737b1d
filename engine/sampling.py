"""Sampling: one token a row, a pure function of logits, the rows' settings and counted randomness.

A row's draw depends on (seed, position, choice) alone, so a seeded request keeps its text whatever shares its
batch, and after a restart. The draw is by inversion: tokens below a row's cut are left out, the rest are laid
end to end in the vocabulary's order, and a uniform number says where to stop. No noise for each token of the
vocabulary, and a sort only where top-k or top-p ask for one.
"""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

INCREMENT, LAST_SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(31)
MULTIPLIERS = (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))

KNOBS = ("temperature", "top_k", "top_p", "min_p", "uniform")  # the columns of `knobs`


def uniforms(
    seeds: NDArray[np.uint64], positions: NDArray[np.uint64], choices: NDArray[np.uint64]
) -> NDArray[np.float32]:
    """A number in [0, 1) for each (seed, position, choice): a counter, well mixed."""
    state = mix(mix(mix(seeds) + positions) + choices)
    return ((state >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step and finish."""
    x = x + INCREMENT
    for shift, factor in MULTIPLIERS:
        x ^= x >> shift
        x *= factor
    x ^= x >> LAST_SHIFT
    return x


def draw(logits: mx.array, knobs: mx.array, *, is_greedy: bool, is_filtered: bool) -> mx.array:
    """One token a row, (R,) int32, from logits (R, V) and knobs (R, 5).

    Temperature 0 takes the largest logit, the first of equals. Otherwise a token stays if its scaled logit is
    not below the k-th largest, if the larger ones (ties stay together) do not already hold top_p of what top_k left,
    and if it has at least min_p of the largest one's probability. `is_greedy`: all rows have temperature 0;
    `is_filtered`: some row has a top_k or a top_p.
    """
    largest = mx.argmax(logits, axis=-1).astype(mx.int32)
    if is_greedy:
        return largest
    temperature, top_k, top_p, min_p, uniform = (knobs[:, i : i + 1] for i in range(len(KNOBS)))
    scaled = (logits - logits.max(axis=-1, keepdims=True)) / mx.maximum(temperature, 1e-6)
    cut = mx.log(min_p)  # -inf where min_p is 0
    if is_filtered:
        cut = mx.maximum(cut, lowest_kept(scaled, top_k, top_p))
    weights = mx.where(scaled >= cut, mx.exp(scaled), 0.0)
    sums = mx.cumsum(weights, axis=-1)
    chosen = (sums <= uniform * sums[:, -1:]).sum(axis=-1)
    last_kept = (sums < sums[:, -1:]).sum(axis=-1)  # rounding must not run past the last token that stays
    return mx.where(temperature[:, 0] > 0, mx.minimum(chosen, last_kept).astype(mx.int32), largest)


def lowest_kept(scaled: mx.array, top_k: mx.array, top_p: mx.array) -> mx.array:
    """The smallest scaled logit, (R, 1), that top_k and top_p let through."""
    vocabulary = scaled.shape[-1]
    ordered = -mx.sort(-scaled, axis=-1)
    kth = mx.where(top_k > 0, mx.minimum(top_k, vocabulary), vocabulary).astype(mx.int32) - 1
    by_count = mx.take_along_axis(ordered, kth, axis=-1)
    weights = mx.where(ordered >= by_count, mx.exp(ordered), 0.0)
    before = mx.cumsum(weights, axis=-1, inclusive=False)  # weight of the larger ones
    is_inside = before < top_p * weights.sum(axis=-1, keepdims=True)
    last = mx.maximum(is_inside.astype(mx.int32).sum(axis=-1, keepdims=True) - 1, 0)
    by_weight = mx.take_along_axis(ordered, last, axis=-1)
    return mx.where(top_p < 1, mx.maximum(by_count, by_weight), by_count)
