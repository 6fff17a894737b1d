"""Adapters made up for measuring: of the right shapes, small random numbers."""

import mlx.core as mx

from engine.adapter import Adapter, LowRank
from engine.config import ModelConfig, module_sizes
from engine.weights import LINEAR_MODULES


def made_up_adapter(config: ModelConfig, rank: int, seed: int, strength: float = 0.02) -> Adapter:
    """An adapter for every linear module of every layer; its numbers are of the size of `strength`."""
    random = mx.random.key(seed)
    modules, sizes = {}, module_sizes(config)
    for layer in range(config.num_layers):
        for name in LINEAR_MODULES:
            random, key_a, key_b = mx.random.split(random, 3)
            width_in, width_out = sizes[name]
            modules[layer, name] = LowRank(
                mx.random.normal((width_in, rank), key=key_a) * strength,
                mx.random.normal((rank, width_out), key=key_b) * strength,
                scale=1.0,
            )
    mx.eval([part for module in modules.values() for part in (module.a, module.b)])
    return Adapter(modules, version=f"made-up-{rank}-{seed}")
