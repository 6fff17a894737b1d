"""engine/lora.py: each row gets its own adapter's product, written out by hand, whatever the others have."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine.adapter import Adapter, LowRank
from engine.lora import LoraRows, project, stack_adapters
from engine.weights import LINEAR_MODULES
from tests.engines import tiny_model

MODEL = tiny_model("qwen2")
HIDDEN, INNER = 64, 128


def low_rank(rank: int, scale: float, seed: int, wide: tuple[int, int] = (HIDDEN, HIDDEN)) -> LowRank:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((wide[0], rank)), rng.standard_normal((rank, wide[1]))
    return LowRank(mx.array(a, mx.float32), mx.array(b, mx.float32), scale)


def adapter(rank: int, scale: float, seed: int, *places: tuple[int, str]) -> Adapter:
    return Adapter({place: low_rank(rank, scale, seed) for place in places or ((0, "q_proj"),)}, f"{seed}")


def rows(count: int, width: int = HIDDEN) -> mx.array:
    return mx.array(np.random.default_rng(9).standard_normal((count, width)), mx.float32)


def by_hand(x: mx.array, name: str, index: int, owners: list[Adapter | None]) -> np.ndarray:  # type: ignore[type-arg]
    """y = x @ W.T + bias + scale * (x @ A) @ B for each row, in float64."""
    y = np.array(getattr(MODEL.weights.layers[index], name)(x), np.float64)
    for row, owner in enumerate(owners):
        pair = None if owner is None else owner.modules.get((index, name))
        if pair is not None:
            low = np.array(x, np.float64)[row] @ np.array(pair.a, np.float64)
            y[row] += pair.scale * low @ np.array(pair.b, np.float64)
    return y


def projected(x: mx.array, name: str, index: int, adapters: list[Adapter], of: list[int]) -> Any:
    lora = LoraRows(stack_adapters(adapters, 2), mx.array(of, mx.int32))
    return np.array(project(name, MODEL.weights.layers[index], index, x, lora))


@pytest.mark.parametrize("scale", [20.0, 16 / 8, 16 / 8**0.5])  # mlx_lm's as it stands, alpha / r, alpha / sqrt(r)
def test_the_scale_multiplies_as_it_is(scale: float) -> None:
    one, x = adapter(8, scale, 1), rows(5)
    found = projected(x, "q_proj", 0, [one], [0] * 5)
    wanted = by_hand(x, "q_proj", 0, [one] * 5)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_rows_of_mixed_ranks_and_rows_without_an_adapter_share_one_product() -> None:
    adapters = [adapter(3, 2.0, 1), adapter(16, 0.5, 2), adapter(1, 20.0, 3)]
    of = [0, 1, -1, 2, 2, 0, -1, 1]
    x = rows(len(of))
    found = projected(x, "q_proj", 0, adapters, of)
    wanted = by_hand(x, "q_proj", 0, [None if index < 0 else adapters[index] for index in of])
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    plain = np.array(project("q_proj", MODEL.weights.layers[0], 0, x, None))
    np.testing.assert_array_equal(found[[2, 6]], plain[[2, 6]])


def test_a_row_is_the_same_alone_as_beside_others() -> None:
    adapters = [adapter(3, 2.0, 1), adapter(16, 0.5, 2)]
    x = rows(7)
    together = projected(x, "q_proj", 0, adapters, [0, 1, 0, -1, 1, 1, 0])
    alone = projected(x[4:5], "q_proj", 0, adapters, [1])
    np.testing.assert_allclose(together[4:5], alone, atol=1e-5 * np.abs(alone).max())


def test_an_adapter_changes_the_modules_it_names_and_no_others() -> None:
    places = ((0, "q_proj"), (1, "o_proj"))
    one, other = adapter(4, 2.0, 1, places[0]), adapter(6, 3.0, 2, places[1])
    stack = stack_adapters([one, other], 2)
    assert [set(layer) for layer in stack.layers] == [{"q_proj"}, {"o_proj"}]
    x = rows(2)
    for index in (0, 1):
        for name in ("q_proj", "o_proj"):
            found = projected(x, name, index, [one, other], [0, 1])
            wanted = by_hand(x, name, index, [one, other])
            np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_every_linear_module_takes_an_adapter_beside_its_bias() -> None:
    for name in LINEAR_MODULES:
        out, into = getattr(MODEL.weights.layers[1], name).weight.logical_shape
        one = Adapter({(1, name): low_rank(4, 2.0, 7, (into, out))}, "")
        x = rows(3, into)
        wanted = by_hand(x, name, 1, [one, None, one])
        np.testing.assert_allclose(projected(x, name, 1, [one], [0, -1, 0]), wanted, atol=1e-5 * np.abs(wanted).max())


def test_ranks_may_differ_by_module() -> None:
    one = Adapter({(0, "q_proj"): low_rank(2, 1.0, 1), (0, "o_proj"): low_rank(9, 4.0, 2)}, "")
    assert one.rank == 9
    assert one.num_bytes == 4 * 64 * 2 * (2 + 9)
    stack = stack_adapters([one, one], 2)
    starts = {name: module.layout.starts.tolist() for name, module in stack.layers[0].items()}
    assert starts == {"q_proj": [0, 2, 4], "o_proj": [0, 9, 18]}


def test_modules_of_equal_ranks_share_one_mask() -> None:
    one = Adapter({(index, name): low_rank(4, 2.0, 1) for index in (0, 1) for name in ("q_proj", "o_proj")}, "")
    stack = stack_adapters([one], 2)
    layouts = {id(module.layout) for layer in stack.layers for module in layer.values()}
    assert len(layouts) == 1
