"""What is the same on a GPU: alone and in a batch, run to run, and read again instead of decoded.

Streams are sampled at temperature 1 with seeds, from made-up weights whose logits are five apart, about as far as
a trained model's: a few tokens share most of the probability.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.cuda_models import CONFIGS, engine_of, made_up, requests
from engine.engine import Engine
from engine.event import TokenEvent
from engine.kernels.table import Kernels
from engine.request import Request
from engine.weights import Model

STREAMS, PROMPT, ANSWER = 256, 120, 400
SHARPNESS = 5.0


def compare(kernels_for: Callable[[Model], Kernels]) -> None:
    model = made_up(replace(CONFIGS["Qwen3-0.6B"], tie_word_embeddings=False), sharpness=SHARPNESS)
    kernels = kernels_for(model)

    def engine(streams: int) -> Engine:
        return engine_of(model, kernels, streams, PROMPT + ANSWER + 80)

    asked = [
        replace(request, sampling=replace(request.sampling, seed=number))
        for number, request in enumerate(requests(model.config, STREAMS, PROMPT, ANSWER, seed=5, temperature=1.0))
    ]
    alone = [answers(engine(8), [request]) for request in asked[:4]]
    again = [answers(engine(8), [request]) for request in asked[:4]]
    print(f"run to run, alone: {agreement(alone, again)}")
    for streams in (8, 64, STREAMS):
        many, twice = answers(engine(streams), asked[:streams]), answers(engine(streams), asked[:streams])
        equal = sum(many[request] == twice[request] for request in many)
        print(f"alone against a batch of {streams}: {agreement(alone, [many] * 4)}")
        print(f"run to run, in a batch of {streams}: {equal} of {streams} answers have the same tokens", flush=True)
    print(f"different tokens in an answer, on average: {np.mean([len(set(one)) for one in many.values()]):.0f}")
    resumed = [replace(one, id=f"{one.id}-again", resumed=(tuple(many[one.id][:-1]),)) for one in asked]
    last = engine(STREAMS)
    answers(last, resumed)
    stats = last.stats()
    print(f"replayed positions: {stats.replayed_tokens:,}, of them drawn otherwise: {stats.replay_mismatches:,}")


def answers(engine: Engine, asked: list[Request]) -> dict[str, list[int]]:
    for request in asked:
        engine.add(request)
    tokens: dict[str, list[int]] = {request.id: [] for request in asked}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                tokens[event.request_id].append(event.token)
    return tokens


def agreement(first: list[dict[str, list[int]]], second: list[dict[str, list[int]]]) -> str:
    """How many tokens the answers have in common from their start."""
    common = []
    for one, other in zip(first, second, strict=True):
        name = next(iter(one))
        pairs = list(zip(one[name], other[name], strict=True))
        common.append(next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs)))
    return f"{', '.join(map(str, common))} of {len(pairs)} tokens until the first that differs"
