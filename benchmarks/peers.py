"""llama.cpp and mlx-lm, given the same weights and prompts as our kernels."""

import json
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import mlx.core as mx

from engine.weights import Model


class LlamaCpp:
    """llama.cpp in a process of its own, of whatever environment has it."""

    def __init__(self, python: str, model: Path, num_threads: int) -> None:
        worker = Path(__file__).with_name("llama_cpp_worker.py")
        command = [python, str(worker), str(model), str(num_threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise OSError("the child has ended")
        return json.loads(line)

    def ask(self, *call: Any) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(call) + "\n")
        self.process.stdin.flush()
        return float(self.read())


class MlxLm:
    """mlx-lm on the same tensors."""

    def __init__(self, model: Model) -> None:
        from loaders.mlx_lm_model import mlx_lm_model

        self.model = mlx_lm_model(model)

    def decode(self, num_sequences: int, prompt: int, tokens: int) -> float:
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self.model)
        ids = mx.array([[(p * 7 + s) % 1000 for p in range(prompt)] for s in range(num_sequences)])
        drawn = self.model(ids, cache=cache)[:, -1:].argmax(-1)
        mx.eval(drawn)
        seconds = []
        for _ in range(tokens):
            began = time.perf_counter()
            drawn = self.model(drawn, cache=cache)[:, -1:].argmax(-1)
            mx.eval(drawn)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    def prefill(self, prompt: int) -> float:
        began = time.perf_counter()
        mx.eval(self.model(mx.array([[p * 7 % 1000 for p in range(prompt)]]))[:, -1:].argmax(-1))
        return time.perf_counter() - began
