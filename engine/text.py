"""TextState: bytes of tokens in, whole characters out. A pure fold: what came so far is all it knows.

A token may end in the middle of a character, so up to three bytes wait for the next one. Bytes that are no UTF-8
become U+FFFD, just as many as in a decoding of the whole. Each step costs as much as its piece is long.
"""

import codecs
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextState:
    """A text on its way.

    state, text = TextState().step(b"caf\\xc3")   # "caf"
    state, text = state.step(b"\\xa9")             # "é"
    """

    tail: bytes = b""  # the beginning of a character, at most three bytes
    strips_space: bool = False  # a space that comes first is dropped: SentencePiece puts it before every text

    def step(self, piece: bytes) -> tuple["TextState", str]:
        """Take a token's bytes, and give the characters that are now complete."""
        waiting = self.tail + piece
        text, num_used = codecs.utf_8_decode(waiting, "replace", False)
        tail = waiting[num_used:]
        strips_space = self.strips_space and not text
        if self.strips_space:
            text = text.removeprefix(" ")
        if tail == self.tail and strips_space == self.strips_space:
            return self, text
        return TextState(tail, strips_space), text

    def finish(self) -> str:
        """What the bytes still waiting come to, now that no more follow."""
        return codecs.utf_8_decode(self.tail, "replace", True)[0]
