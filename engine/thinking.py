"""ThinkState: text in, and out what is said apart from what is thought. Thoughts stand between two tags.

A tag may come in pieces, so text that could be the beginning of one is held back. White space behind a tag is
dropped: models put empty lines there, and they belong to neither side.
"""

from dataclasses import dataclass
from typing import NamedTuple

OPENING, CLOSING = "<think>", "</think>"


class Split(NamedTuple):
    """A piece of text, its two sides apart."""

    said: str
    thought: str


@dataclass(frozen=True, slots=True)
class ThinkState:
    """A text on its way. `ThinkState(is_thinking=True)` where the prompt itself ends with the opening tag."""

    is_thinking: bool = False
    held: str = ""  # what could be the beginning of the next tag
    drops_space: bool = False  # only white space came since the last tag

    def step(self, text: str) -> tuple["ThinkState", Split]:
        """Take text, and give what is certain to be no tag, each side by itself."""
        is_thinking, drops_space, rest = self.is_thinking, self.drops_space, self.held + text
        sides: tuple[list[str], list[str]] = ([], [])  # said, thought
        while True:
            tag = CLOSING if is_thinking else OPENING
            before, found, after = rest.partition(tag)
            held = "" if found else tag[: overlap(rest, tag)]
            before = before[: len(before) - len(held)]
            if drops_space:
                before = before.lstrip()
            sides[is_thinking].append(before)
            drops_space = bool(found) or (drops_space and not before)
            if not found:
                break
            is_thinking, rest = not is_thinking, after
        split = Split("".join(sides[0]), "".join(sides[1]))
        if (is_thinking, held, drops_space) == (self.is_thinking, self.held, self.drops_space):
            return self, split
        return ThinkState(is_thinking, held, drops_space), split

    def finish(self) -> Split:
        """What was held back for a tag that did not come."""
        return Split("", self.held) if self.is_thinking else Split(self.held, "")


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of a text are the beginning of a tag, but not all of it."""
    longest = min(len(text), len(tag) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(tag[:length])), 0)
