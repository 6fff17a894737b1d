"""AnswerState: tokens' bytes in, and out what a client reads of one choice. A pure fold over the tokens' bytes.

Bytes become text, text is split into what is said and what is thought, and what is said ends at a stop string. The
state is small, and a replay of the same tokens leads to the same one: whoever has the tokens can go on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from engine.stopping import StopState, compile_stops
from engine.text import TextState
from engine.thinking import Split, ThinkState


class Piece(NamedTuple):
    """What one step adds to an answer."""

    text: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class AnswerState:
    """An answer on its way. `thinking` is None where think tags are text like any other."""

    decoding: TextState = TextState()
    thinking: ThinkState | None = None
    stopping: StopState = StopState()
    early: int = 0  # so many tokens yet end no answer, whatever they read

    @classmethod
    def begin(
        cls,
        stop: Iterable[str] = (),
        *,
        strips_space: bool = False,
        splits_thoughts: bool = False,
        is_thinking: bool = False,
        min_tokens: int = 0,
    ) -> "AnswerState":
        """The state before the first token."""
        stops = compile_stops(stop)
        return cls(
            TextState(strips_space=strips_space),
            ThinkState(is_thinking) if splits_thoughts else None,
            StopState(stops),
            min_tokens if stops.strings else 0,
        )

    @property
    def matched(self) -> str | None:
        """The stop string that ended the answer."""
        return self.stopping.matched

    def step(self, piece: bytes) -> tuple["AnswerState", Piece]:
        """Take a token's bytes, and give the text that is certain."""
        if self.matched is not None:
            return self, Piece("")
        decoding, text = self.decoding.step(piece)
        return self.read(decoding, text)

    def finish(self) -> tuple["AnswerState", Piece]:
        """Give what was held back, now that no token follows; it may still complete a stop string."""
        if self.matched is not None:
            return self, Piece("")
        state, last = self.read(TextState(), self.decoding.finish())
        held = Split("", "") if state.thinking is None else state.thinking.finish()
        stopping, said = state.stopping.step(held.said, ends=not self.early)
        done = AnswerState(TextState(), None, stopping)
        return done, Piece(last.text + said + stopping.finish(), last.reasoning + held.thought)

    def read(self, decoding: TextState, text: str) -> tuple["AnswerState", Piece]:
        thinking, split = (None, Split(text, "")) if self.thinking is None else self.thinking.step(text)
        stopping, said = self.stopping.step(split.said, ends=not self.early)
        piece = Piece(said, split.thought)
        if decoding is self.decoding and thinking is self.thinking and stopping is self.stopping and not self.early:
            return self, piece  # as after most tokens
        return AnswerState(decoding, thinking, stopping, max(0, self.early - 1)), piece
