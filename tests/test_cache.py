"""engine/cache.py: what is written into slots comes back from them, and costs the bytes that it says."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from engine.cache import KVCache, LayerCache, block_bytes, to_int8
from engine.options import CacheDtype
from tests.engines import PAPER_CONFIG

DTYPES: tuple[CacheDtype, ...] = ("float32", "float16", "bfloat16", "int8")


def rows(count: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal((count, 2, 8)) * 5, mx.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_from_their_slots_and_others_stay(dtype: CacheDtype) -> None:
    layer, keys, values = LayerCache(10, 2, 8, dtype), rows(3, 1), rows(3, 2)
    layer.write(mx.array([7, 0, 4]), keys, values)
    found = [np.array(part) for part in layer.read(mx.arange(10), mx.float32)]
    tolerance = {"float32": 0, "float16": 1e-2, "bfloat16": 0.1, "int8": 0.1}[dtype]
    for part, written in zip(found, (keys, values), strict=True):
        np.testing.assert_allclose(part[[7, 0, 4]], np.array(written), atol=tolerance)
        assert not part[[1, 2, 3, 5, 6, 8, 9]].any()


def test_eight_bits_are_off_by_half_a_step_of_their_own_vector_at_most() -> None:
    x = rows(50) * mx.array(10.0 ** np.arange(-25, 25)).reshape(50, 1, 1).astype(mx.float32)
    whole, scales = (np.array(part, np.float64) for part in to_int8(x))
    largest = np.abs(np.array(x, np.float64)).max(axis=-1)
    error = np.abs(whole * scales[..., None] - np.array(x, np.float64)).max(axis=-1)
    usual = largest > 1e-19  # what is smaller becomes nothing
    assert (error <= largest / 127 * 0.501 + 1e-20).all()
    assert (np.abs(whole).max(axis=-1)[usual] == 127).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_costs_the_bytes_that_are_counted_for_it(dtype: CacheDtype) -> None:
    config = replace(PAPER_CONFIG, num_layers=3, num_kv_heads=2, head_dim=8)
    cache = KVCache(config, 7, 4, dtype)
    assert sum(array.nbytes for array in cache.arrays()) == 7 * block_bytes(config, 4, dtype)
