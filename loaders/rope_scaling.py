"""The ways a config.json spells rotary scaling -> RopeScaling. Knows nothing else of the config."""

import math
from collections.abc import Mapping
from typing import Any

from engine.config import RopeScaling
from engine.refusal import Unsupported, shown

KINDS = ("default", "linear", "llama3", "yarn")
MOST = 1e30


def rope_parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of rotary embedding: `rope_scaling`, or `rope_parameters` since transformers 5."""
    value = raw.get("rope_scaling")
    name = "rope_scaling" if value is not None else "rope_parameters"
    value = raw.get("rope_parameters") if value is None else value
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Unsupported(f"{name} is {shown(value)}; an object is wanted", name)
    return value


def parse_rope_scaling(settings: Mapping[str, Any], max_position: int) -> RopeScaling | None:
    """The scaling that some settings ask for; `max_position` stands in where they name no original length."""
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if kind == "default":
        return None
    original = number(settings, "original_max_position_embeddings", max_position)
    factor = number(settings, "factor")
    if factor < 1:
        raise Unsupported(f"rope factor is {shown(factor)}; a number of at least 1 is wanted", "factor")
    match kind:
        case "linear":
            return RopeScaling("linear", factor)
        case "llama3":
            low, high = number(settings, "low_freq_factor", 1.0), number(settings, "high_freq_factor", 4.0)
            if low >= high:
                raise Unsupported(
                    f"low_freq_factor is {low}; less than high_freq_factor, {high}, is wanted", "rope_scaling"
                )
            original = number(settings, "original_max_position_embeddings", 8192)
            return RopeScaling("llama3", factor, int(original), low_freq_factor=low, high_freq_factor=high)
        case "yarn":
            refuse_other_yarn(settings, factor)
            return RopeScaling(
                "yarn",
                factor,
                int(original),
                beta_fast=number(settings, "beta_fast", 32.0),
                beta_slow=number(settings, "beta_slow", 1.0),
                mscale=number(settings, "mscale", 1.0, least=0),
                mscale_all_dim=number(settings, "mscale_all_dim", 0.0, least=0),
            )
    raise Unsupported(f"rope scaling is {shown(kind)}; known are {', '.join(KINDS)}", "rope_scaling")


def refuse_other_yarn(settings: Mapping[str, Any], factor: float) -> None:
    if settings.get("truncate") not in (None, True):
        raise Unsupported("yarn with truncate false is not known here", "rope_scaling")
    usual = 0.1 * math.log(factor) + 1
    attention = number(settings, "attention_factor", usual)
    if not math.isclose(attention, usual, rel_tol=1e-4):
        raise Unsupported(f"yarn has the attention_factor {attention}; known is {usual:.4f}", "rope_scaling")


def number(settings: Mapping[str, Any], name: str, default: float | None = None, *, least: float = 1e-9) -> float:
    value: Any = default if settings.get(name) is None else settings[name]
    if type(value) not in (int, float) or not least <= value <= MOST:
        raise Unsupported(f"rope scaling has {name} {shown(value)}; a number above 0 is wanted", name)
    return float(value)
