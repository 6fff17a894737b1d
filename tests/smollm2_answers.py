"""What mlx-lm answers, greedily, with SmolLM2's weights: ten beginnings and how it goes on with each.

python -m tests.smollm2_answers    writes smollm2_answers.json again: minutes, with MLX's own products on a CPU
"""

import json
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step

from loaders.checkpoint import load_model
from loaders.mlx_lm_model import mlx_lm_model
from loaders.tokenizer import load_tokenizer

TEXTS = (
    "The capital of France is Paris",
    "Once upon a time there was",
    "def fibonacci(n): return",
    "Water boils at a temperature of",
    "My favourite book is about",
    "In 1969 the first man",
    "The opposite of hot is",
    "Dear Sir or Madam",
    "One, two, three, four",
    "Erlang is a programming language",
)
NUM_TOKENS = 24
FILE = Path(__file__).with_suffix(".json")


def answers() -> dict[str, list[int]]:
    """The tokens that mlx-lm gave to each text."""
    found: dict[str, list[int]] = json.loads(FILE.read_text())
    return found


def main() -> None:
    model, tokenizer = mlx_lm_model(load_model("smollm2")), load_tokenizer("smollm2")
    made = {}
    for text in TEXTS:
        prompt = mx.array(tokenizer.encode(text))
        made[text] = [int(token) for token, _ in generate_step(prompt, model, max_tokens=NUM_TOKENS)]
    lines = (f"  {json.dumps(text)}: {tokens}" for text, tokens in made.items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
