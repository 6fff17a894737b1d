"""PEFT's adapters: adapter_model.safetensors, lora_A (rank, in) and lora_B (out, rank).

The scale is lora_alpha / r, with use_rslora lora_alpha / sqrt(r); both numbers may differ by module, by patterns.
A setting that is not known here and not off may change what the tensors mean, so it is refused.
"""

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from engine.adapter import Adapter
from engine.refusal import BrokenFile, Unsupported, shown
from engine.weights import BLOCK_OF, LINEAR_MODULES
from loaders.adapter_format import AdapterFormat, Config, Half, Slot, bounded, finite, module_path

# Old files name the adapter ("default"); some were made from a model without its head, and lack a "model.".
NAME = re.compile(
    r"base_model\.model\.(?:model\.)?layers\.(0|[1-9][0-9]{0,5})\.(self_attn\.|mlp\.)([a-z]+_proj)"
    r"\.lora_([AB])(?:\.default)?\.weight"
)
HALF_OF: Mapping[str, Half] = {"A": "a", "B": "b"}
EXACT_SCALES = "exact_scales"  # in the tensors' file: what no alpha / r comes to
QUANTIFIER = re.compile(r"[*+?{]")
REPEATED_GROUP = re.compile(r"\)[*+{]")
MAX_PATTERNS, MAX_PATTERN_LENGTH = 1024, 256
MAX_QUANTIFIED, MAX_QUANTIFIERS = 64, 3  # patterns that are more than a name, and what one of them may have

REFUSED = {
    "use_dora": "is a DoRA, whose magnitudes need the base's weights in full",
    "modules_to_save": "brings whole modules (modules_to_save), which would replace the base's",
    "fan_in_fan_out": "was made for a base with transposed weights (fan_in_fan_out)",
    "lora_bias": "has biases (lora_bias)",
    "layer_replication": "repeats layers of the base (layer_replication)",
    "target_parameters": "changes single parameters (target_parameters)",
    "trainable_token_indices": "changes tokens' embeddings (trainable_token_indices)",
    "use_qalora": "is a QALoRA, which pools its input",
    "arrow_config": "chooses between several adapters (arrow_config)",
    "alora_invocation_tokens": "starts in the middle of a prompt (alora_invocation_tokens)",
}
# What training needed, and what only names things.
HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "task_type", "use_rslora",
}  # fmt: skip
# Ways to begin that change the base as well, so that the adapter is the difference to another one.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check(config: Config) -> None:
    if config.get("peft_type") != "LORA":
        raise Unsupported(f"the adapter's peft_type is {shown(config.get('peft_type'))}; only 'LORA' is known")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise Unsupported(f"the adapter's task_type is {shown(config['task_type'])}; only 'CAUSAL_LM' is known")
    if config.get("bias", "none") != "none":
        raise Unsupported(f"the adapter trained biases too (bias is {shown(config['bias'])}); only 'none' is known")
    for name, value in config.items():
        if name in REFUSED and value:
            raise Unsupported(f"the adapter {REFUSED[name]}; only plain LoRA is known")
        if name not in REFUSED and name not in HARMLESS and value:
            raise Unsupported(f"the adapter has the setting {shown(name)} = {shown(value)}, which is not known here")
    if str(config.get("init_lora_weights")).lower().startswith(CHANGES_BASE):
        began = shown(config["init_lora_weights"])
        raise Unsupported(f"the adapter began with {began}, which changes the base too; only plain LoRA is known")
    for name in ("r", "lora_alpha"):
        if name not in config:
            raise BrokenFile(f"adapter_config.json has no {name}, which says how strong the adapter is")
    rank_of(config, config["r"])
    finite(config["lora_alpha"], "lora_alpha")
    for name in ("rank_pattern", "alpha_pattern"):
        check_patterns(config.get(name) or {}, name)


def check_patterns(patterns: Any, name: str) -> None:
    """Regular expressions out of a file: only such as cannot take for ever."""
    if not isinstance(patterns, dict) or len(patterns) > MAX_PATTERNS:
        raise BrokenFile(f"{name} must be an object of at most {MAX_PATTERNS} patterns")
    counts = {pattern: len(QUANTIFIER.findall(pattern)) for pattern in patterns}
    if sum(count > 0 for count in counts.values()) > MAX_QUANTIFIED:
        raise Unsupported(f"{name} has more than {MAX_QUANTIFIED} patterns that are not plain names")
    for pattern, count in counts.items():
        if len(pattern) > MAX_PATTERN_LENGTH or count > MAX_QUANTIFIERS or REPEATED_GROUP.search(pattern):
            raise Unsupported(f"{name} has the pattern {shown(pattern)}, which is too intricate")
        try:
            compiled(pattern)
        except (re.error, RecursionError, OverflowError) as trouble:
            raise BrokenFile(f"{name} has the pattern {shown(pattern)}: {trouble}") from None


@lru_cache(2 * MAX_PATTERNS)
def compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")  # PEFT's rule: the end of a module's name


def rank_of(config: Config, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BrokenFile(f"the adapter's rank is {shown(value)}; a whole number from 1 is wanted")
    return value


def base_of(config: Config) -> str | None:
    base = config.get("base_model_name_or_path")
    return base if isinstance(base, str) else None


def slot_of(name: str) -> Slot:
    match = NAME.fullmatch(name)
    if match is not None and BLOCK_OF.get(match[3]) == match[2] and match[3] in LINEAR_MODULES:
        return Slot(int(match[1]), match[3], HALF_OF[match[4]])
    for part, what in (("lora_magnitude", "a magnitude of a DoRA"), ("lora_embedding", "a change to the embedding")):
        if part in name:
            raise Unsupported(f"{shown(name)} is {what}; only LoRA on linear modules is known")
    raise Unsupported(f"{shown(name)} changes no linear module of a layer; known are {', '.join(LINEAR_MODULES)}")


def tensor_name(slot: Slot) -> str:
    return f"base_model.model.{slot.path}.lora_{slot.half.upper()}.weight"


def scale_of(config: Config, slot: Slot, rank: int) -> float:
    wanted = rank_of(config, by_pattern(config.get("rank_pattern"), slot.path, config["r"]))
    if wanted != rank:
        raise BrokenFile(f"{slot.path} has the rank {rank} in the tensors and {wanted} in adapter_config.json")
    alpha = finite(by_pattern(config.get("alpha_pattern"), slot.path, config["lora_alpha"]), "lora_alpha")
    origin = f"{slot.path} has the rank {rank} and the lora_alpha {shown(alpha)}"
    scale = bounded(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), origin)
    exact = exact_scales(config).get(slot.path)
    # What a division rounds away may be told beside it, and nothing else.
    return exact if isinstance(exact, float) and math.isclose(exact, scale, rel_tol=1e-15) else scale


def by_pattern(patterns: Any, path: str, otherwise: Any) -> Any:
    """What the first pattern that matches says."""
    for pattern, value in (patterns or {}).items():
        if compiled(pattern).match(path):
            return value
    return otherwise


def exact_scales(config: Config) -> Mapping[str, Any]:
    text = config.get("__metadata__", {}).get(EXACT_SCALES)
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return cast(Mapping[str, Any], found) if isinstance(found, dict) else {}


def config_of(adapter: Adapter, base: str | None) -> dict[str, Any]:
    rank = adapter.rank
    alphas = {place: alpha_of(module.scale, module.rank) for place, module in adapter.modules.items()}
    usual = max(set(alphas.values()), key=list(alphas.values()).count)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "r": rank,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "target_modules": sorted({module for _, module in adapter.modules}),
        "rank_pattern": {
            module_path(*place): module.rank for place, module in adapter.modules.items() if module.rank != rank
        },
        "alpha_pattern": {module_path(*place): alpha for place, alpha in alphas.items() if alpha != usual},
    }


def alpha_of(scale: float, rank: int) -> float:
    """The alpha whose quotient by the rank is the scale, or as near as any comes."""
    middle = scale * rank
    near = (middle, math.nextafter(middle, -math.inf), math.nextafter(middle, math.inf))
    return min(near, key=lambda alpha: abs(alpha / rank - scale))


def metadata_of(adapter: Adapter) -> dict[str, str]:
    rounded = {
        module_path(*place): module.scale
        for place, module in adapter.modules.items()
        if alpha_of(module.scale, module.rank) / module.rank != module.scale
    }
    return {"format": "pt"} | ({EXACT_SCALES: json.dumps(rounded)} if rounded else {})


PEFT = AdapterFormat(
    name="peft",
    tensors_file="adapter_model.safetensors",
    is_transposed=True,
    check=check,
    base_of=base_of,
    slot_of=slot_of,
    tensor_name=tensor_name,
    scale_of=scale_of,
    config_of=config_of,
    metadata_of=metadata_of,
)
