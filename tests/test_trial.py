"""A column is tried before it serves: what rounds passes, what errs does not."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from engine.batch import Batch
from engine.cache import KVCache
from engine.kernels.choose import CUDA_TOLERANCE
from engine.kernels.portable import PortableKernels
from engine.kernels.trial import SMALL, Trial, try_column
from engine.lora import AdapterStack, LoraRows
from engine.options import CacheDtype
from engine.quantized import QuantizedTensor
from engine.weights import LINEAR_MODULES, Layer, Weights
from tests.cpu_models import Numbers, make_weights

BLOCK = 8


class OffByAThird(PortableKernels):
    def feed_forward(self, x: mx.array, layer: Layer, index: int, lora: LoraRows | None) -> mx.array:
        y = super().feed_forward(x, layer, index, lora)
        return x + (y - x) * 2 / 3


@pytest.mark.parametrize("is_wide", [False, True])
def test_a_right_column_agrees_with_both_references(is_wide: bool) -> None:
    numbers = Numbers(is_tied=False)
    weights = make_weights(numbers)
    trial = try_column(
        lambda small: PortableKernels(small, BLOCK), numbers.config, weights, BLOCK, SMALL, is_reference_wide=is_wide
    )
    assert trial.passes(1e-3), trial


def test_a_wrong_column_is_further_off_than_bfloat16_may_be() -> None:
    numbers = Numbers()
    trial = try_column(
        lambda small: OffByAThird(small, BLOCK),
        numbers.config,
        make_weights(numbers),
        BLOCK,
        SMALL,
        is_reference_wide=True,
    )
    assert not trial.passes(CUDA_TOLERANCE), trial


def tried(column: type[PortableKernels], weights: Weights | None = None, *rounded: CacheDtype) -> Trial:
    numbers = Numbers()
    return try_column(
        lambda small: column(small, BLOCK),
        numbers.config,
        weights or make_weights(numbers),
        BLOCK,
        SMALL,
        rounded=rounded,
    )


class OtherAdapters(PortableKernels):
    """One whose rows have other adapters than they should."""

    def layers(self, x: mx.array, weights: Weights, cache: KVCache, batch: Batch, lora: LoraRows | None) -> mx.array:
        return super().layers(x, weights, cache, batch, None if lora is None else self.mistaken(lora))

    def mistaken(self, lora: LoraRows) -> LoraRows:
        return LoraRows(lora.stack, np.minimum(lora.numbers, 0))


@pytest.mark.parametrize("name", LINEAR_MODULES)
def test_a_column_that_forgets_the_adapters_of_a_module_is_seen(name: str) -> None:
    class Forgetful(OtherAdapters):
        def mistaken(self, lora: LoraRows) -> LoraRows:
            known = tuple({key: one for key, one in layer.items() if key != name} for layer in lora.stack.layers)
            return LoraRows(AdapterStack(known), lora.numbers)

    assert not tried(Forgetful).passes(CUDA_TOLERANCE)


def test_a_column_that_takes_another_adapter_is_seen() -> None:
    assert not tried(OtherAdapters).passes(CUDA_TOLERANCE)


@pytest.mark.parametrize("wrong", [None, "float16", "int8"])
def test_a_column_that_errs_where_keys_are_rounded_is_seen(wrong: str | None) -> None:
    class Rounding(PortableKernels):
        def layers(
            self, x: mx.array, weights: Weights, cache: KVCache, batch: Batch, lora: LoraRows | None
        ) -> mx.array:
            y = super().layers(x, weights, cache, batch, lora)
            return x if str(cache.layers[0].keys.dtype).endswith(str(wrong)) else y

    assert tried(Rounding, None, "float16", "int8").passes(1e-3) == (wrong is None)


def test_a_format_that_the_first_layer_has_not_is_tried() -> None:
    class WrongInFourBits(PortableKernels):
        def prepare(self, weights: Weights) -> Weights:
            for _, w in weights.named():
                if isinstance(w, QuantizedTensor) and w.bits == 4:
                    w.scales = w.scales * 2
            return super().prepare(weights)

    four, eight = make_weights(Numbers()), make_weights(Numbers(bits=8))
    mixed = replace(eight, layers=(eight.layers[0], four.layers[1]))
    assert tried(PortableKernels, mixed).passes(1e-3)
    assert not tried(WrongInFourBits, mixed).passes(CUDA_TOLERANCE)
