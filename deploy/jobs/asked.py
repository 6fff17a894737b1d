"""Asked: what a line comes to: questions in the words of `Client.generate`, and how their answers are told.

A plain line is one question and its answer in our own fields. What OpenAI's lines mean is in `openai_lines`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.jobs.lines import Line
from engine.completion import Completion
from engine.refusal import BadRequest
from engine.words import WORDS

Words = Mapping[str, Any]
Tell = Callable[[Sequence[Completion]], dict[str, Any]]
OWN_WORDS = ("prompt", "messages", "adapter", "raw", "priority", "deadline_seconds")


@dataclass(frozen=True, slots=True)
class Asked:
    """The questions of one line, and the function from their completions to what is told of them."""

    questions: tuple[Words, ...]
    tell: Tell


def asked_plainly(line: Line, defaults: Words) -> Asked:
    """A plain line."""
    for word in line.body:
        if word not in OWN_WORDS and word not in WORDS:
            known = ", ".join((*OWN_WORDS, "custom_id", *WORDS))
            raise BadRequest(f"there is no field {word[:40]!r}; known are {known}", word[:40])
    return Asked((completed(line.body, defaults, line.seed),), tell_plainly)


def completed(words: Words, defaults: Words, seed: int) -> Words:
    """The words, with what they leave open."""
    said = {word: value for word, value in words.items() if value is not None}
    return {"seed": seed, **defaults, **said}


def tell_plainly(completions: Sequence[Completion]) -> dict[str, Any]:
    (completion,) = completions
    told = completion.to_dict()
    del told["id"], told["tokens"]
    return told
