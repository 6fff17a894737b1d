"""LoRA training through the CPU column's quantized linear: mlx-lm's own model, adapters and loss, with our product."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from engine.kernels.cpu import missing_reason
from engine.quantized import QuantizedTensor
from tests.engines import tiny_model

if missing_reason() is not None:
    pytest.skip("the CPU kernels are not built", allow_module_level=True)
pytest.importorskip("mlx_lm")

from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers

from engine.kernels.cpu.packed import pack
from loaders.mlx_lm_model import mlx_lm_model

LORA = {"rank": 4, "scale": 20.0, "dropout": 0.0}
FORMATS = [(2, 64), (3, 32), (4, 32), (4, 64), (5, 64), (6, 32), (8, 64)]


@pytest.fixture(autouse=True)
def on_the_cpu():
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


class PackedLinear(nn.Module):
    """In the place of `nn.QuantizedLinear`."""

    def __init__(self, of: nn.QuantizedLinear) -> None:
        super().__init__()
        parts = QuantizedTensor(of.weight, of.scales, of.biases, bits=of.bits, group_size=of.group_size, mode=of.mode)
        packed, bias = pack(parts), of.bias if "bias" in of else mx.zeros(())
        self.product = lambda x: x @ packed.T + bias  # an array that a module holds would be taken for a plain one

    def __call__(self, x: mx.array) -> mx.array:
        return self.product(x)


def model_with_lora(family: str, bits: int, group: int, *, is_packed: bool) -> nn.Module:
    """mlx-lm's model with random adapters on all linear modules, the same whoever multiplies."""
    mx.random.seed(0)
    model = mlx_lm_model(tiny_model(family, (("group_size", group), ("bits", bits))))
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), LORA)
    for _, module in model.named_modules():
        if isinstance(module, LoRALinear):
            module.lora_b = mx.random.normal(module.lora_b.shape) / 100
            if is_packed:
                module.linear = PackedLinear(module.linear)
    model.train()
    return model


def text(rows: int = 2, length: int = 12) -> tuple[mx.array, mx.array]:
    """A batch as mlx-lm's trainer makes one: tokens, and from where to where the loss counts."""
    tokens = np.random.default_rng(0).integers(0, 256, (rows, length))
    return mx.array(tokens), mx.array([[3, length]] * rows)


@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_loss_and_gradients_are_mlx_s_own(bits, group):
    found = []
    for is_packed in (False, True):
        model = model_with_lora("qwen2", bits, group, is_packed=is_packed)
        (loss, _), gradients = nn.value_and_grad(model, default_loss)(model, *text())
        found.append((loss.item(), dict(tree_flatten(gradients))))
    (theirs, their_gradients), (ours, our_gradients) = found
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert our_gradients.keys() == their_gradients.keys() and len(our_gradients) == 2 * 7 * 2
    for name, wanted in their_gradients.items():
        assert np.abs(our_gradients[name] - wanted).max() <= 1e-4 * np.abs(wanted).max(), name


def test_a_few_steps_of_training_reduce_the_loss_as_mlx_s_own_do():
    losses = []
    for is_packed in (False, True):
        model, optimizer = model_with_lora("qwen3", 4, 32, is_packed=is_packed), optim.Adam(learning_rate=3e-3)
        step, own = nn.value_and_grad(model, default_loss), []
        for _ in range(6):
            (loss, _), gradients = step(model, *text())
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            own.append(loss.item())
        losses.append(own)
    theirs, ours = losses
    assert ours[-1] < ours[0] / 10
    assert ours == pytest.approx(theirs, rel=1e-3)
