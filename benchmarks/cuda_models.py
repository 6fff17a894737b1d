"""Made-up models in the shapes of real ones, the load that they are measured under, and the same in mlx-lm.

Weights are random; speed does not depend on what they say.
"""

import time
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from engine.adapter import Adapter, LowRank
from engine.config import ModelConfig, module_sizes
from engine.engine import Engine
from engine.event import TokenEvent
from engine.kernels.table import Kernels
from engine.options import EngineOptions
from engine.quantized import QuantizedTensor
from engine.request import Request, Sampling
from engine.weights import LINEAR_MODULES, Layer, Linear, Model, Weights

CONFIGS = {
    "Qwen3-8B": ModelConfig("qwen3", 151936, 4096, 12288, 36, 32, 8, 128, 1e-6, 1e6, 40960, False),
    "Qwen3-0.6B": ModelConfig("qwen3", 151936, 1024, 3072, 28, 16, 8, 128, 1e-6, 1e6, 40960, True),
    "Llama-3.1-8B": ModelConfig("llama", 128256, 4096, 14336, 32, 32, 8, 128, 1e-5, 5e5, 131072, False),
}


# Made-up models


def made_up(config: ModelConfig, bits: int = 4, group: int = 64, sharpness: float = 1.0) -> Model:
    """Random quantized weights that keep activations in range; `sharpness` is how far apart logits are, on average."""

    def matrix(out: int, inner: int) -> QuantizedTensor:
        packed = mx.random.randint(-(1 << 31), (1 << 31) - 1, (out, inner * bits // 32), dtype=mx.int32).view(mx.uint32)
        scale = inner**-0.5 * 3.46 / (1 << bits)
        scales = mx.random.uniform(0.8, 1.2, (out, inner // group)).astype(mx.bfloat16) * scale
        biases = scales * -((1 << bits) - 1) / 2
        mx.eval(packed, scales, biases)
        return QuantizedTensor(
            packed, scales.astype(mx.bfloat16), biases.astype(mx.bfloat16), bits=bits, group_size=group
        )

    def norm(size: int) -> mx.array:
        return mx.random.uniform(0.9, 1.1, (size,)).astype(mx.bfloat16)

    hidden, inner, d = config.hidden_size, config.intermediate_size, config.head_dim
    has_norms = config.architecture == "qwen3"

    def layer() -> Layer:
        return Layer(
            norm(hidden),
            Linear(matrix(config.num_heads * d, hidden)),
            Linear(matrix(config.num_kv_heads * d, hidden)),
            Linear(matrix(config.num_kv_heads * d, hidden)),
            Linear(matrix(hidden, config.num_heads * d)),
            norm(hidden),
            Linear(matrix(inner, hidden)),
            Linear(matrix(inner, hidden)),
            Linear(matrix(hidden, inner)),
            norm(d) if has_norms else None,
            norm(d) if has_norms else None,
        )

    head = None if config.tie_word_embeddings else matrix(config.vocab_size, hidden)
    layers = tuple(layer() for _ in range(config.num_layers))
    last = norm(hidden) * sharpness
    return Model(config, Weights(matrix(config.vocab_size, hidden), layers, last, head), "made up")


def adapter(config: ModelConfig, rank: int, seed: int) -> Adapter:
    """A random adapter on all linear modules."""
    mx.random.seed(seed)
    modules, sizes = {}, module_sizes(config)
    for index in range(config.num_layers):
        for name in LINEAR_MODULES:
            into, out = sizes[name]
            a = (mx.random.normal((into, rank)) * into**-0.5).astype(mx.bfloat16)
            b = (mx.random.normal((rank, out)) * 0.1).astype(mx.bfloat16)
            modules[index, name] = LowRank(a, b, 1.0)
    made = Adapter(modules, f"random {seed}")
    mx.eval([part for pair in made.modules.values() for part in (pair.a, pair.b)])
    return made


# The load


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens a second, and the time of a step."""

    prompt: float
    decode: float
    step_seconds: float


def engine_of(model: Model, kernels: Kernels, streams: int, context: int, **options: Any) -> Engine:
    config = model.config
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
    cache_bytes = max(1 << 28, int(per_token * (context + 64) * streams * 1.3))
    settings = {"max_batch_tokens": 2048, "max_adapter_bytes": 8 << 30, **options}
    chosen = EngineOptions(cache_bytes=cache_bytes, max_sequences=max(streams, 8), **settings)
    return Engine(model, kernels, chosen)


def requests(
    config: ModelConfig, streams: int, prompt: int, answer: int, adapters: int = 0, seed: int = 0, **sampling: float
) -> list[Request]:
    rng = np.random.default_rng((streams, seed))
    settings = Sampling(max_tokens=answer, ignore_eos=True, **({"temperature": 0.0} | sampling))  # type: ignore[arg-type]
    return [
        Request(
            f"r{rng.integers(1 << 60)}",
            tuple(rng.integers(10, config.vocab_size, prompt).tolist()),
            settings,
            adapter=f"a{index % adapters}" if adapters else None,
        )
        for index in range(streams)
    ]


def drain(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def measure(engine: Engine, asked: list[Request]) -> Rates:
    """Prompts go in until all streams decode; then whole steps of decoding are timed."""
    for request in asked:
        engine.add(request)
    start, seen = time.perf_counter(), set[str]()
    while len(seen) < len(asked):
        seen.update(event.request_id for event in engine.step() if isinstance(event, TokenEvent))
    read = time.perf_counter()
    for _ in range(3):
        engine.step()
    begin, tokens, steps = time.perf_counter(), 0, 0
    while len(engine.scheduler.rows) == len(asked):
        tokens += sum(isinstance(event, TokenEvent) for event in engine.step())
        steps += 1
    end = time.perf_counter()
    drain(engine)
    prompts = sum(len(request.prompt) for request in asked)
    return Rates(prompts / (read - start), tokens / (end - begin), (end - begin) / max(1, steps))


# mlx-lm's


def reference(model: Model) -> object:
    """The same weights in mlx-lm's model."""
    import mlx.nn as nn
    from mlx_lm.models import llama, qwen3

    config = model.config
    common = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_position,
        "rope_theta": config.rope_theta,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    module = qwen3 if config.architecture == "qwen3" else llama
    built = module.Model(module.ModelArgs(model_type=config.architecture, **common))
    first = model.weights.embed_tokens
    assert isinstance(first, QuantizedTensor)
    nn.quantize(built, group_size=first.group_size, bits=first.bits)
    tensors: list[tuple[str, mx.array]] = []
    for name, w in model.weights.named():
        if isinstance(w, QuantizedTensor):
            assert w.biases is not None
            stem = name.removesuffix(".weight")
            tensors += [(name, mx.array(w)), (f"{stem}.scales", w.scales), (f"{stem}.biases", w.biases)]
        else:
            tensors.append((name, w))
    built.load_weights(tensors, strict=False)
    mx.eval(built.parameters())
    return built


def measure_reference(model: object, config: ModelConfig, streams: int, prompt: int, steps: int) -> Rates:
    from mlx_lm.generate import BatchGenerator

    rng = np.random.default_rng(streams)
    prompts = [rng.integers(10, config.vocab_size, prompt).tolist() for _ in range(streams)]
    generator = BatchGenerator(
        model, max_tokens=steps + 50, completion_batch_size=streams, prefill_batch_size=min(streams, 8)
    )
    generator.insert(prompts)
    start, seen = time.perf_counter(), set[int]()
    while len(seen) < streams:
        seen.update(response.uid for response in generator.next_generated())
    begin = time.perf_counter()
    count = sum(len(generator.next_generated()) for _ in range(steps))
    end = time.perf_counter()
    generator.close()
    return Rates(streams * prompt / (begin - start), count / (end - begin), (end - begin) / steps)
