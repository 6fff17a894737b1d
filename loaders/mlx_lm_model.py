"""mlx-lm with this project's tensors: the same weights, the other system. Needs the extra `train` or `dev`."""

from dataclasses import asdict
from typing import Any

import mlx.core as mx
from mlx.nn.layers.quantized import quantize

from engine.config import ModelConfig
from engine.kernels.portable import as_float32
from engine.quantized import QuantizedTensor
from engine.refusal import Unsupported
from engine.weights import Model


def mlx_lm_model(model: Model) -> Any:
    """The model as mlx-lm builds it, in float32 where this is a CPU."""
    try:
        from mlx_lm.utils import _get_classes
    except ImportError:
        raise Unsupported("mlx-lm is not installed: install genserve[train]") from None
    is_cpu = mx.default_device().type == mx.DeviceType.cpu
    tensors = {
        name.removesuffix(".weight"): as_float32(tensor) if is_cpu else tensor for name, tensor in model.weights.named()
    }
    numbers = mlx_lm_config(model.config)
    numbers["attention_bias"] = any(name.endswith("_proj.bias") for name in tensors)
    build, arguments = _get_classes(config=numbers)
    built = build(arguments.from_dict(numbers))

    def format_of(path: str, _: Any) -> bool | dict[str, Any]:
        tensor = tensors.get(path)
        if not isinstance(tensor, QuantizedTensor):
            return False
        return {"group_size": tensor.group_size, "bits": tensor.bits, "mode": tensor.mode}

    quantize(built, class_predicate=format_of)
    built.load_weights(list(parts(tensors)))
    built.eval()
    return built


def parts(tensors: dict[str, mx.array]) -> Any:
    """Every tensor under the names that mlx-lm gives its parts."""
    for name, tensor in tensors.items():
        yield name if name.endswith(".bias") else f"{name}.weight", mx.array(tensor)
        if isinstance(tensor, QuantizedTensor):
            yield f"{name}.scales", tensor.scales
            if tensor.biases is not None:
                yield f"{name}.biases", tensor.biases


def mlx_lm_config(config: ModelConfig) -> dict[str, Any]:
    """The numbers as a config.json spells them."""
    scaling = config.rope_scaling
    return {
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_scaling": None
        if scaling is None
        else asdict(scaling)
        | {"rope_type": scaling.kind, "original_max_position_embeddings": scaling.original_max_position},
    }
