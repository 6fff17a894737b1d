"""Serving: who answers a batch. How it comes about is `system_serving`'s and `inline_serving`'s."""

from dataclasses import dataclass
from pathlib import Path

from actors.model_choice import ModelChoice
from deploy.jobs.answers import Answers


@dataclass(frozen=True, slots=True)
class Serving:
    """Who answers, with which model, and which adapters are attached to it, whenever that was."""

    answers: Answers
    choice: ModelChoice
    adapters: tuple[str, ...]


def names_of(choice: ModelChoice) -> tuple[str, ...]:
    """What requests may call a model: its place's name, and its place."""
    return Path(choice.source).name, choice.source
