"""mlx_lm's adapters: adapters.safetensors, lora_a (in, rank) and lora_b (rank, out).

`lora_parameters.scale` multiplies as it stands. It is not divided by the rank: that would make an adapter of rank 8
eight times too weak.
"""

import re
from typing import Any, cast

from engine.adapter import Adapter
from engine.refusal import BrokenFile, Unsupported, shown
from engine.weights import BLOCK_OF, LINEAR_MODULES
from loaders.adapter_format import AdapterFormat, Config, Half, Slot, bounded, finite

NAME = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.(self_attn\.|mlp\.)([a-z]+_proj)\.lora_([ab])")


def check(config: Config) -> None:
    kind = config.get("fine_tune_type", "lora")
    if kind == "dora":
        raise Unsupported("the adapter is a DoRA, whose magnitudes need the base's weights in full; only LoRA is known")
    if kind != "lora":
        raise Unsupported(f"the adapter's fine_tune_type is {shown(kind)}; only 'lora' is known")
    if not isinstance(config.get("lora_parameters"), dict) or "scale" not in config["lora_parameters"]:
        raise BrokenFile("adapter_config.json has no lora_parameters.scale, which says how strong the adapter is")
    finite(config["lora_parameters"]["scale"], "lora_parameters.scale")


def base_of(config: Config) -> str | None:
    base = config.get("model")
    return base if isinstance(base, str) else None


def slot_of(name: str) -> Slot:
    match = NAME.fullmatch(name)
    if match is not None and BLOCK_OF.get(match[3]) == match[2] and match[3] in LINEAR_MODULES:
        return Slot(int(match[1]), match[3], cast(Half, match[4]))
    if name.endswith(".m"):
        raise Unsupported(f"{shown(name)} is a magnitude of a DoRA; only LoRA is known")
    raise Unsupported(f"{shown(name)} changes no linear module of a layer; known are {', '.join(LINEAR_MODULES)}")


def tensor_name(slot: Slot) -> str:
    return f"{slot.path}.lora_{slot.half}"


def scale_of(config: Config, slot: Slot, rank: int) -> float:
    scale = config["lora_parameters"]["scale"]
    return bounded(float(scale), f"{slot.path} has the rank {rank} and the lora_parameters.scale {shown(scale)}")


def config_of(adapter: Adapter, base: str | None) -> dict[str, Any]:
    scales = sorted({module.scale for module in adapter.modules.values()})
    if len(scales) != 1:
        raise Unsupported(f"mlx_lm's format has one scale for all modules; these have {shown(scales)}")
    keys = sorted({BLOCK_OF[module] + module for _, module in adapter.modules})
    return {
        "fine_tune_type": "lora",
        "model": base,
        "num_layers": -1,  # all: mlx_lm counts from the last one, and a module that has no tensors here stays as it is
        "lora_parameters": {"rank": adapter.rank, "scale": scales[0], "dropout": 0.0, "keys": keys},
    }


def metadata_of(adapter: Adapter) -> dict[str, str]:
    return {"format": "mlx"}


MLX_LM = AdapterFormat(
    name="mlx_lm",
    tensors_file="adapters.safetensors",
    is_transposed=False,
    check=check,
    base_of=base_of,
    slot_of=slot_of,
    tensor_name=tensor_name,
    scale_of=scale_of,
    config_of=config_of,
    metadata_of=metadata_of,
)
