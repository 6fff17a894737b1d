"""A column is tried before it serves: what rounds passes, what errs does not."""

import mlx.core as mx
import pytest

from engine.kernels.choose import CUDA_TOLERANCE
from engine.kernels.portable import PortableKernels
from engine.kernels.trial import SMALL, try_column
from engine.lora import LoraRows
from engine.weights import Layer
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
