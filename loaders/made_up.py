"""Adapters made up for measuring: of the right shapes, small random numbers."""

import mlx.core as mx

from engine.adapter import Adapter, LowRank
from engine.config import ModelConfig
from engine.weights import LINEAR_MODULES


def made_up_adapter(config: ModelConfig, rank: int, seed: int, strength: float = 0.02) -> Adapter:
    """An adapter for every linear module of every layer; its numbers are of the size of `strength`."""
    random = mx.random.key(seed)
    modules = {}
    for layer in range(config.num_layers):
        for name in LINEAR_MODULES:
            random, key_a, key_b = mx.random.split(random, 3)
            width_in, width_out = module_shape(config, name)
            modules[layer, name] = LowRank(
                mx.random.normal((width_in, rank), key=key_a) * strength,
                mx.random.normal((rank, width_out), key=key_b) * strength,
                scale=1.0,
            )
    mx.eval([part for module in modules.values() for part in (module.a, module.b)])
    return Adapter(modules, version=f"made-up-{rank}-{seed}")


def module_shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """(in, out) of a linear module."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "q_proj": (config.hidden_size, queries),
        "k_proj": (config.hidden_size, keys),
        "v_proj": (config.hidden_size, keys),
        "o_proj": (queries, config.hidden_size),
        "gate_proj": (config.hidden_size, config.intermediate_size),
        "up_proj": (config.hidden_size, config.intermediate_size),
        "down_proj": (config.intermediate_size, config.hidden_size),
    }[name]
