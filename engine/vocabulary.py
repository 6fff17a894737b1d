"""Vocabulary: what token ids mean as text. All that the engine knows of a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.answer import AnswerState


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The bytes that each id stands for (none for control tokens), and how they become an answer."""

    token_bytes: Sequence[bytes]
    strips_space: bool = False
    splits_thoughts: bool = False

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes; ids that pad a model's vocabulary beyond its tokenizer's have none."""
        return self.token_bytes[token] if token < len(self.token_bytes) else b""

    def begin(self, stop: tuple[str, ...] = (), *, is_thinking: bool = False) -> AnswerState:
        """The state of an answer before its first token."""
        return AnswerState.begin(
            stop,
            strips_space=self.strips_space,
            splits_thoughts=self.splits_thoughts,
            is_thinking=is_thinking,
        )
