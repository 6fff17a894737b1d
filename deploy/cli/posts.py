"""Posts: short texts that one batch writes side by side, cut where a sentence ends. Knows no terminal."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.completion import Piece
from loaders.prompt import Prompt

MAX_ATTEMPTS = 4  # for a post that comes out empty
SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)")


@dataclass(slots=True)
class Post:
    """One post, as far as it is written."""

    max_chars: int
    prompt_tokens: int
    written: str = ""
    tokens: tuple[int, ...] = ()
    finish_reason: str | None = None

    @property
    def text(self) -> str:
        """What is shown of it: whole sentences, as many as fit."""
        return cut(self.written, self.max_chars, is_whole=self.finish_reason == "stop")

    @property
    def is_done(self) -> bool:
        return self.finish_reason is not None or len(self.written.strip()) > self.max_chars

    def add(self, piece: Piece) -> None:
        self.written += piece.text
        self.tokens += piece.tokens
        self.finish_reason = piece.finish_reason

    def to_dict(self) -> dict[str, Any]:
        """The fields of a completion."""
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.tokens),
            "total_tokens": self.prompt_tokens + len(self.tokens),
        }
        reason = self.finish_reason or "length"  # written beyond max_chars
        return {"text": self.text, "tokens": list(self.tokens), "finish_reason": reason, "usage": usage}


OnPosts = Callable[[Sequence[Post]], None]


class Writer(Protocol):
    """A model in this process, or a system that runs."""

    def prompt_tokens(self, prompt: Prompt, *, system: str | None = None) -> tuple[int, ...]: ...
    def stream(self, prompt: Prompt, **words: Any) -> Iterator[Piece]: ...


def write_posts(
    serving: Writer, prompt: str, count: int, words: dict[str, Any], max_chars: int, on_posts: OnPosts
) -> list[Post]:
    """So many posts from one batch; those that come out empty are tried again, a few times."""
    prompt_tokens = len(serving.prompt_tokens(prompt, system=words.get("system")))
    posts = [Post(max_chars, prompt_tokens) for _ in range(count)]
    for attempt in range(MAX_ATTEMPTS):
        missing = [number for number, post in enumerate(posts) if not post.text]
        if not missing:
            break
        for number in missing:
            posts[number] = Post(max_chars, prompt_tokens)
        is_seeded = attempt and words.get("seed") is not None
        seed = {"seed": (words["seed"] + attempt) % 2**64} if is_seeded else {}
        for piece in serving.stream(prompt, **(words | seed), n=len(missing)):
            posts[missing[piece.choice]].add(piece)
            on_posts(posts)
            if all(post.is_done for post in posts):
                break
    return posts


def cut(text: str, max_chars: int, *, is_whole: bool) -> str:
    """The text up to the last sentence's end within `max_chars`; a whole text that fits stays as it is."""
    text = text.strip()
    if is_whole and len(text) <= max_chars:
        return text
    ends = [match.end() for match in SENTENCE_END.finditer(text[: max_chars + 1]) if match.end() <= max_chars]
    if ends:
        return text[: ends[-1]]
    if len(text) <= max_chars:
        return text
    words, _, _ = text[:max_chars].rpartition(" ")
    return (words or text[: max_chars - 1])[: max_chars - 1].rstrip() + "…"
