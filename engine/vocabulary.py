"""Vocabulary: what token ids mean as text. All that the engine knows of a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.answer import AnswerState

OPENING_THOUGHT = b"<think>"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The bytes that each id stands for (none for control tokens), and how they become an answer."""

    token_bytes: Sequence[bytes]
    strips_space: bool = False
    splits_thoughts: bool = False

    def bytes_of(self, token: int) -> bytes:
        """A token's bytes; ids that pad a model's vocabulary beyond its tokenizer's have none."""
        return self.token_bytes[token] if token < len(self.token_bytes) else b""

    def begin(self, stop: tuple[str, ...] = (), prompt: Sequence[int] = (), min_tokens: int = 0) -> AnswerState:
        """The state of an answer to this prompt before its first token. The first `min_tokens` end nothing."""
        return AnswerState.begin(
            stop,
            strips_space=self.strips_space,
            splits_thoughts=self.splits_thoughts,
            is_thinking=self.opens_thought(prompt),
            min_tokens=min_tokens,
        )

    def opens_thought(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends with the tag that begins a thought, so that the answer begins within one."""
        end = b"".join(map(self.bytes_of, prompt[-16:]))
        return self.splits_thoughts and end.rstrip().endswith(OPENING_THOUGHT)
