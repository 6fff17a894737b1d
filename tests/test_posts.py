"""deploy/cli/posts.py: posts are whole sentences, and an empty one is tried again."""

from collections.abc import Iterator
from typing import Any

import pytest

from deploy.cli.posts import MAX_ATTEMPTS, Post, cut, write_posts
from engine.completion import Piece


@pytest.mark.parametrize(
    ("text", "max_chars", "is_whole", "wanted"),
    [
        ("One. Two. Three.", 300, True, "One. Two. Three."),
        ("One. Two. Three.", 9, True, "One. Two."),
        ("One. Two. Thr", 300, False, "One. Two."),
        ('He said "yes!" Then', 300, False, 'He said "yes!"'),
        ("version 3.11 is out. And", 300, False, "version 3.11 is out."),
        ("no end at all", 300, False, "no end at all"),
        ("no end at all but long", 12, True, "no end at…"),
        ("abcdefghij", 5, True, "abcd…"),
        ("  spaced.  ", 300, True, "spaced."),
        ("", 300, True, ""),
    ],
)
def test_a_post_ends_where_a_sentence_does(text: str, max_chars: int, is_whole: bool, wanted: str) -> None:
    assert cut(text, max_chars, is_whole=is_whole) == wanted
    assert len(cut(text, max_chars, is_whole=is_whole)) <= max_chars


class Scripted:
    """A serving that answers each call with the next list of texts, one for each choice."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.calls: list[dict[str, Any]] = []

    def prompt_tokens(self, prompt: str, *, system: str | None = None) -> tuple[int, ...]:
        return tuple(range(len(prompt)))

    def stream(self, prompt: str, **words: Any) -> Iterator[Piece]:
        self.calls.append(words)
        for choice, text in enumerate(self.answers.pop(0)):
            for position, character in enumerate(text):
                yield Piece(choice, position, character, (ord(character),))
            yield Piece(choice, len(text), "", (2,), "stop")


def written(serving: Scripted, count: int, **words: Any) -> list[Post]:
    return write_posts(serving, "prompt", count, words, 300, lambda _: None)  # type: ignore[arg-type]


def test_only_empty_posts_are_tried_again() -> None:
    serving = Scripted(["a.", "", "c."], ["b."])
    assert [post.text for post in written(serving, 3)] == ["a.", "b.", "c."]
    assert [call["n"] for call in serving.calls] == [3, 1]


def test_another_try_has_another_seed() -> None:
    serving = Scripted([""], ["b."])
    written(serving, 1, seed=7)
    assert [call["seed"] for call in serving.calls] == [7, 8]


def test_a_model_that_says_nothing_is_not_asked_for_ever() -> None:
    serving = Scripted(*[[" "]] * MAX_ATTEMPTS)
    assert [post.text for post in written(serving, 1)] == [""]
    assert not serving.answers


def test_a_post_that_is_long_enough_stops_the_writing() -> None:
    serving = Scripted(["Ten chars. " * 100])
    (post,) = written(serving, 1)
    assert len(post.tokens) < 320
    assert post.text == ("Ten chars. " * 27).strip()
    assert post.to_dict()["finish_reason"] == "length"
