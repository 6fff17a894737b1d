"""config.json -> ModelConfig, every number within bounds. Knows no tensors, and runs no code that a config names."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from engine.config import Architecture, ModelConfig
from engine.refusal import Unsupported, shown
from loaders.endings import named_ending
from loaders.json_file import read_json
from loaders.quantization import Quantization, parse_quantization
from loaders.rope_scaling import parse_rope_scaling, rope_parameters

ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")

# What transformers takes where a config says nothing.
DEFAULT_MAX_POSITION = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
MAX_LAYERS, MAX_HEADS, MAX_HEAD_DIM, MAX_WIDTH, MAX_VOCABULARY = 1024, 4096, 2048, 1 << 20, 1 << 24
MAX_POSITION = 2**31 - 1


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """A model's numbers, and what its tensors are besides."""

    model: ModelConfig
    quantization: Quantization = Quantization()
    biased: frozenset[str] = field(default_factory=frozenset)  # the linear modules that have a bias: "q_proj"


def read_config(directory: Path) -> CheckpointConfig:
    """The config of a checkpoint's directory."""
    raw = read_json(directory / "config.json")
    generation = directory / "generation_config.json"
    config = parse_config(raw, read_json(generation) if generation.is_file() else {})
    model, named = config.model, named_ending(directory, config.model.vocab_size)
    if named is None or named in model.eos_token_ids:
        return config
    return replace(config, model=replace(model, eos_token_ids=(*model.eos_token_ids, named)))


def parse_config(raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> CheckpointConfig:
    """Read a config.json and, for the ids that end a text, a generation_config.json."""
    architecture = parse_architecture(raw)
    refuse_unknown_arithmetic(raw)
    hidden_size = whole(raw, "hidden_size", MAX_WIDTH)
    num_heads = whole(raw, "num_attention_heads", MAX_HEADS)
    max_position = whole(raw, "max_position_embeddings", MAX_POSITION, DEFAULT_MAX_POSITION[architecture])
    scaling = parse_rope_scaling(rope_parameters(raw), max_position)
    if scaling is not None and scaling.kind == "yarn":  # its config keeps the length before stretching
        max_position = max(max_position, min(MAX_POSITION, int(scaling.factor * scaling.original_max_position)))
    model = ModelConfig(
        architecture=architecture,
        vocab_size=whole(raw, "vocab_size", MAX_VOCABULARY),
        hidden_size=hidden_size,
        intermediate_size=whole(raw, "intermediate_size", MAX_WIDTH),
        num_layers=whole(raw, "num_hidden_layers", MAX_LAYERS),
        num_heads=num_heads,
        num_kv_heads=whole(raw, "num_key_value_heads", MAX_HEADS, num_heads),
        head_dim=whole(raw, "head_dim", MAX_HEAD_DIM, hidden_size // num_heads),
        rms_norm_eps=positive(raw, "rms_norm_eps", 1e-6),
        rope_theta=positive(rope_parameters(raw) if raw.get("rope_theta") is None else raw, "rope_theta", 10000.0),
        max_position=max_position,
        tie_word_embeddings=flag(raw, "tie_word_embeddings"),
        rope_scaling=scaling,
        sliding_window=parse_sliding_window(raw, architecture),
        eos_token_ids=parse_eos(raw, generation or {}),
    )
    check_model(model)
    return CheckpointConfig(model, parse_quantization(raw), biased_modules(raw, architecture))


def check_model(model: ModelConfig) -> None:
    """Refuse numbers that are each in bounds and do not fit together."""
    if model.num_heads % model.num_kv_heads:
        raise Unsupported(
            f"{model.num_heads} heads do not divide among {model.num_kv_heads} key-value heads", "num_key_value_heads"
        )
    if model.head_dim % 2:
        raise Unsupported(f"head_dim is {model.head_dim}; rotary embedding wants an even one", "head_dim")


def parse_architecture(raw: Mapping[str, Any]) -> Architecture:
    name = raw.get("model_type")
    if name not in ARCHITECTURES:
        raise Unsupported(f"architecture is {shown(name)}; known are {', '.join(ARCHITECTURES)}", "model_type")
    return cast(Architecture, name)


def refuse_unknown_arithmetic(raw: Mapping[str, Any]) -> None:
    """Refuse what would change the numbers, and is not done here."""
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise Unsupported(f"hidden_act is {shown(activation)}; known is silu", "hidden_act")
    if flag(raw, "rope_traditional"):
        raise Unsupported("rope_traditional is true; rotary pairs are read in halves only", "rope_traditional")
    rotated = rope_parameters(raw).get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if rotated != 1.0:
        raise Unsupported(f"partial_rotary_factor is {shown(rotated)}; known is 1.0", "partial_rotary_factor")


def biased_modules(raw: Mapping[str, Any], architecture: Architecture) -> frozenset[str]:
    if architecture == "qwen2":
        return frozenset({"q_proj", "k_proj", "v_proj"})
    attention = ATTENTION if flag(raw, "attention_bias") else ()
    feed_forward = FEED_FORWARD if flag(raw, "mlp_bias") else ()
    return frozenset((*attention, *feed_forward))


def parse_sliding_window(raw: Mapping[str, Any], architecture: Architecture) -> int | None:
    """The window that all layers have; one for a part of the layers is refused."""
    if raw.get("sliding_window") is None or architecture == "llama" and "layer_types" not in raw:
        return None
    window = whole(raw, "sliding_window", MAX_POSITION)
    kinds = raw.get("layer_types")
    if kinds is None:
        if architecture == "mistral":
            return window
        if not flag(raw, "use_sliding_window"):
            return None
        num_layers = whole(raw, "num_hidden_layers", MAX_LAYERS)
        first = whole(raw, "max_window_layers", 1 << 31, 28, least=0)  # 28 is what transformers takes
        kinds = ["full_attention"] * min(first, num_layers) + ["sliding_attention"] * (num_layers - first)
    if not isinstance(kinds, list) or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise Unsupported(
            f"layer_types is {shown(kinds)}; known are full_attention and sliding_attention", "layer_types"
        )
    if "sliding_attention" not in kinds:
        return None
    if "full_attention" in kinds:
        raise Unsupported("sliding_window holds for a part of the layers; known are all and none", "sliding_window")
    return window


def parse_eos(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a text; a generation_config.json has the last word."""
    value = generation.get("eos_token_id")
    if value is None:
        value = raw.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(token) is not int or not 0 <= token < MAX_VOCABULARY for token in ids):
        raise Unsupported(f"eos_token_id is {shown(value)}; a token's id or a list of them is wanted", "eos_token_id")
    return tuple(ids)


def whole(raw: Mapping[str, Any], name: str, most: int, default: int | None = None, *, least: int = 1) -> int:
    """A whole number within bounds; null is as good as nothing."""
    value = default if raw.get(name) is None else raw[name]
    if type(value) is not int or not least <= value <= most:
        raise Unsupported(f"{name} is {shown(value)}; a whole number from {least} to {most} is wanted", name)
    return value


def positive(raw: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value: Any = default if raw.get(name) is None else raw[name]
    if type(value) not in (int, float) or not 0 < value <= 1e30:
        raise Unsupported(f"{name} is {shown(value)}; a number above 0 is wanted", name)
    return float(value)


def flag(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name)
    if value is not None and type(value) is not bool:
        raise Unsupported(f"{name} is {shown(value)}; true or false is wanted", name)
    return bool(value)
