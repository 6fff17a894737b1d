"""llama.cpp as a child that measures when it is told to: a line of JSON in, a line of JSON out.

Runs in whatever environment has llama-cpp-python, and imports nothing of this project.
"""

import ctypes
import json
import sys
import time
from typing import Any

try:
    import llama_cpp
except ImportError as trouble:
    raise SystemExit(f"{sys.executable}: {trouble}") from None
import numpy as np


class Llama:
    """One model, and a context for as many sequences as asked for."""

    def __init__(self, path: str, num_threads: int) -> None:
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.num_threads = num_threads

    def context(self, num_sequences: int, tokens_each: int) -> Any:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = num_sequences * tokens_each
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_seq_max = num_sequences
        parameters.n_threads = parameters.n_threads_batch = self.num_threads
        return llama_cpp.llama_init_from_model(self.model, parameters)

    def feed(self, context: Any, rows: list[tuple[int, int, int]], wants: list[int]) -> list[int]:
        """Rows of (sequence, position, token); the most probable next token of the wanted ones."""
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (sequence, position, token) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = 1 if i in wants else 0
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")
        drawn = []
        for i in wants:
            pointer = llama_cpp.llama_get_logits_ith(context, i)
            logits = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.vocabulary,))
            drawn.append(int(logits.argmax()))
        llama_cpp.llama_batch_free(batch)
        return drawn

    def decode(self, num_sequences: int, prompt: int, tokens: int) -> float:
        """Seconds of a step that gives every sequence one token."""
        context = self.context(num_sequences, prompt + tokens + 8)
        last = []
        for sequence in range(num_sequences):
            rows = [(sequence, position, (position * 7 + sequence) % 1000) for position in range(prompt)]
            for start in range(0, prompt, 512):
                part = rows[start : start + 512]
                is_last = start + 512 >= prompt
                drawn = self.feed(context, part, [len(part) - 1] if is_last else [])
            last.append(drawn[0])
        seconds = []
        for step in range(tokens):
            began = time.perf_counter()
            rows = [(sequence, prompt + step, token) for sequence, token in enumerate(last)]
            last = self.feed(context, rows, list(range(num_sequences)))
            seconds.append(time.perf_counter() - began)
        llama_cpp.llama_free(context)
        return float(np.median(seconds))

    def prefill(self, prompt: int) -> float:
        """Seconds from a prompt to its first token."""
        context = self.context(1, prompt + 8)
        rows = [(0, position, position * 7 % 1000) for position in range(prompt)]
        began = time.perf_counter()
        self.feed(context, rows, [prompt - 1])
        seconds = time.perf_counter() - began
        llama_cpp.llama_free(context)
        return seconds


def main() -> None:
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama = Llama(sys.argv[1], int(sys.argv[2]))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, *given = json.loads(line)
        print(json.dumps(getattr(llama, name)(*given)), flush=True)


if __name__ == "__main__":
    main()
