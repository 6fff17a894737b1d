"""What tests of the process layer share: tiny systems, and engines that misbehave on request."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.model_choice import ModelChoice
from actors.system_config import SystemConfig
from actors.tokenizer_loading import ByteTokenizer
from engine.adapter import Adapter
from engine.engine import Engine
from engine.event import Event
from engine.kernels.choose import choose
from engine.options import EngineOptions
from engine.request import Request, Sampling
from engine.weights import Model
from loaders.checkpoint import load_model
from loaders.made_up import made_up_adapter
from tests.engines import ask, serve
from tests.tiny import write_checkpoint

OPTIONS = EngineOptions(cache_bytes=32 << 20, cache_dtype="float32", max_batch_tokens=64)
POISON = (251, 7, 251, 7)  # a prompt that begins so kills the engine
HANG = (252, 7, 252, 7)  # and with this one a step never returns


def tiny_choice(directory: Path, **changes: Any) -> ModelChoice:
    """A tiny checkpoint with two made-up adapters, served with bytes as tokens."""
    source = write_checkpoint(directory / "model", "llama", {"group_size": 32, "bits": 4})
    choice = ModelChoice(
        str(source),
        OPTIONS,
        adapters=(("red", "1"), ("blue", "2")),
        make_engine="tests.serving:make_engine",
        make_tokenizer="actors.tokenizer_loading:bytes_tokenizer",
        read_adapter="tests.serving:read_adapter",
    )
    return replace(choice, **changes)


def tiny_system(directory: Path, **changes: Any) -> SystemConfig:
    """Without the processes that a test can do without."""
    made = {"choice": tiny_choice(directory), "directory": str(directory / "state")}
    return SystemConfig(**{**made, "is_public": False, **changes})


def quick_engine(choice: ModelChoice) -> Engine:
    """With the kernels that a user gets: ten times as quick, where nobody wants to come in between."""
    model = load_model(choice.source)
    kernels = choose(model.config, model.weights, choice.options.block_size)
    return Engine(model, kernels, choice.options, ByteTokenizer.vocabulary)


def make_engine(choice: ModelChoice) -> Engine:
    from engine.kernels.portable import PortableKernels

    model = load_model(choice.source)
    kernels = PortableKernels(model.config, choice.options.block_size)
    return MisbehavingEngine(model, kernels, choice.options, ByteTokenizer.vocabulary)


def read_adapter(path: str, model: Model) -> Adapter:
    return made_up_adapter(model.config, rank=4, seed=int(path))


class MisbehavingEngine(Engine):
    """Dies, or stops answering, of a request that says so."""

    def step(self) -> list[Event]:
        prompts = [sequence.request.prompt for sequence in self.scheduler.prefilling] + [
            sequence.request.prompt for sequence in self.scheduler.rows.sequences
        ]
        if any(prompt[:4] == POISON for prompt in prompts):
            os.abort()
        if any(prompt[:4] == HANG for prompt in prompts):
            while True:
                time.sleep(1)
        return super().step()


def mixed_requests(count: int, max_tokens: int = 24) -> Iterator[Request]:
    """Requests of every kind, each with an id that says which it is."""
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("greedy", {}),
        ("seeded", {"temperature": 1.0, "seed": 7}),
        ("unseeded", {"temperature": 0.9, "top_p": 0.9, "top_k": 50}),
        ("four", {"n": 4, "temperature": 1.0, "seed": 3}),
        ("stop", {"temperature": 1.2, "seed": 11, "stop": ("a", "zq")}),
        ("logprobs", {"logprobs": 2}),
        ("penalties", {"temperature": 0.8, "seed": 5, "presence_penalty": 0.6, "repetition_penalty": 1.2}),
        ("red", {"adapter": "red"}),
        ("blue", {"adapter": "blue", "temperature": 1.0, "seed": 9}),
        ("scored", {"prompt_logprobs": 1}),
    )
    for number in range(count):
        name, words = kinds[number % len(kinds)]
        yield ask(f"{name}-{number}", 5 + number % 23, **{"max_tokens": max_tokens, **words})


def undisturbed(directory: Path, requests: list[Request], make: Callable[[ModelChoice], Engine] = make_engine) -> Any:
    """What a bare engine answers: by request, its Answer."""
    choice = tiny_choice(directory)
    engine = make(choice)
    for name, path in choice.adapters:
        engine.attach(name, read_adapter(path, engine.model))
    return serve(engine, requests)


def words_of(request: Request) -> dict[str, Any]:
    """A request in a client's words."""
    sampling = {
        name: getattr(request.sampling, name)
        for name in Sampling.__dataclass_fields__
        if getattr(request.sampling, name) != getattr(Sampling(), name)
    }
    return {"prompt": request.prompt, "adapter": request.adapter, "max_tokens": 256, **sampling}
