"""engine/kernels/cpu's draw: the tokens that `engine.sampling.draw` gives, without its sort."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import sampling
from engine.kernels.cpu import missing_reason

if missing_reason() is not None:
    pytest.skip("the CPU kernels are not built", allow_module_level=True)

from engine.kernels.cpu import _native


@pytest.fixture(autouse=True)
def on_the_cpu():
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)
    _native.use_instruction_set("best")


def ours(logits, knobs):
    return np.array(_native.draw(mx.array(logits), mx.array(knobs), False))


def theirs(logits, knobs):
    return np.array(sampling.draw(mx.array(logits), mx.array(knobs), is_greedy=False, is_filtered=True))


def knobs_of(count, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, uniform=None):
    uniform = np.random.default_rng(0).random(count) if uniform is None else np.full(count, uniform)
    columns = [np.full(count, value) for value in (temperature, top_k, top_p, min_p)]
    return np.stack([*columns, uniform], axis=1).astype(np.float32)


knob_rows = st.tuples(
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 2, 5, 40, 1000]),
    st.sampled_from([0.0, 0.05, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 300), knob_rows, st.integers(0, 2**32), st.booleans(), st.sampled_from(["best", "avx2", "generic"])
)
def test_draw_is_that_of_sampling(size, settings_of_row, seed, has_ties, instructions):
    try:
        _native.use_instruction_set(instructions)
    except ValueError:
        _native.use_instruction_set("best")
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((40, size)).astype(np.float32) * 3
    if has_ties:
        logits = np.round(logits)
    knobs = knobs_of(40, *settings_of_row)
    got, want = ours(logits, knobs), theirs(logits, knobs)
    assert ours(logits[7:8], knobs[7:8]) == got[7], "a row alone"
    # A uniform that falls on a boundary to the last bit may go either way: never more than a neighbour, rarely.
    assert (got != want).mean() <= 0.05
    assert all(is_kept(logits[i], knobs[i], got[i]) for i in range(40))


def is_kept(logits, knobs, token):
    """By definition, in float64: whether the cuts let a token through, with room for a rounding."""
    temperature, top_k, top_p, min_p, _ = knobs.astype(np.float64)
    if temperature == 0:
        return token == logits.argmax()
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    weights = np.exp(scaled)
    if top_k > 0:
        weights = np.where(scaled >= np.sort(scaled)[::-1][min(int(top_k), len(scaled)) - 1], weights, 0)
    larger = weights[scaled > scaled[token]].sum()
    is_inside = larger < top_p * weights.sum() + 1e-5 or larger == 0
    return weights[token] > 0 and is_inside and np.exp(scaled[token]) >= min_p - 1e-5


def test_shares_follow_the_distribution():
    logits = np.log(np.array([[0.5, 0.2, 0.2, 0.1]], np.float32))
    uniforms = (np.arange(1000, dtype=np.float32) + 0.5) / 1000
    knobs = np.concatenate([knobs_of(1, uniform=u) for u in uniforms])
    drawn = ours(np.repeat(logits, 1000, axis=0), knobs)
    assert np.bincount(drawn).tolist() == [500, 200, 200, 100]
    nucleus = knobs.copy()
    nucleus[:, 2] = 0.6  # the two of 0.2 are tied, and stay together
    assert set(ours(np.repeat(logits, 1000, axis=0), nucleus).tolist()) == {0, 1, 2}


def test_greedy_takes_the_first_of_equals_and_masked_tokens_are_never_drawn():
    logits = np.zeros((3, 1000), np.float32)
    logits[:, 500] = logits[:, 999] = 2
    assert np.array(_native.draw(mx.array(logits), mx.zeros((3, 5)), True)).tolist() == [500] * 3
    logits[:] = -np.inf
    logits[:, 77] = 1
    assert ours(logits, knobs_of(3, uniform=0.9999999)).tolist() == [77] * 3
    assert ours(logits, knobs_of(3, top_k=5, top_p=0.9, uniform=0.9999999)).tolist() == [77] * 3


@pytest.mark.parametrize("instructions", ["best", "generic"])
def test_what_is_no_number_is_not_drawn_and_hides_nothing(instructions):
    _native.use_instruction_set(instructions)
    all_knobs = [
        (t, k, p, m, u) for t in (0.05, 1.0) for k in (0, 5) for p in (0.9, 1.0) for m in (0, 0.1) for u in (0, 0.5, 1)
    ]
    knobs = np.concatenate([knobs_of(1, t, k, p, m, min(u, 0.9999999)) for t, k, p, m, u in all_knobs])
    logits = np.zeros((len(knobs), 1000), np.float32)
    logits[:, 128:134] = 100
    logits[:, 160:192] = np.nan  # in the same run
    assert set(ours(logits, knobs).tolist()) <= set(range(128, 134))
    for nothing in (-np.inf, np.nan):
        assert set(ours(np.full_like(logits, nothing), knobs).tolist()) == {0}


def test_ties_by_distance_stay_together_beside_a_bound_on_logits():
    logits = np.full((200, 256), -50, np.float32)
    logits[:, 0], logits[:, 64], logits[:, 65] = 100, 2e-9, 1e-9
    knobs = np.concatenate([knobs_of(1, 50.0, 2, uniform=u) for u in (np.arange(200) + 0.5) / 200])
    assert set(ours(logits, knobs).tolist()) == {0, 64, 65}


@pytest.mark.parametrize("size", [49152, 151936])
def test_large_vocabularies(size):
    rng = np.random.default_rng(size)
    logits = rng.standard_normal((6, size)).astype(np.float32) * 4
    for settings_of_row in ((0.7, 50, 0.95, 0.0), (1.0, 0, 0.9, 0.0), (1.0, 0, 1.0, 0.01)):
        knobs = knobs_of(6, *settings_of_row)
        assert (ours(logits, knobs) == theirs(logits, knobs)).all()


def test_no_rows_give_no_tokens():
    assert ours(np.zeros((0, 50), np.float32), np.zeros((0, 5), np.float32)).shape == (0,)
