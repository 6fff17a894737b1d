"""deploy/http/actor_requests.py: what ends a stream of the system of processes is told with its own code."""

import asyncio
from typing import Any

import pytest

from actors.inbox import Inbox
from actors.polls import End, Part
from actors.refusals import DeadlinePassed, Unavailable
from actors.stream import Stream
from deploy.http.actor_requests import bursts_of
from deploy.http.backend import Cancelled
from engine.completion import Usage
from engine.refusal import Refusal

DONE = End(Usage(1, 1), None, None, None)


def pieces(choice: int, reason: str, message: str | None) -> list[Any]:
    return [(choice, 0, "a", (97,), None, "", None, None), (choice, 1, "", (), reason, "", None, message)]


def read(*parts: Part) -> tuple[str, Refusal | None]:
    """The text that came, and what ended it."""
    inbox, texts = Inbox("id", (0, 0)), list[str]()
    unused: Any = None

    async def reading() -> None:
        for part in parts:
            inbox.feed(part)
        async for burst in bursts_of(Stream(unused, unused, inbox, "")):
            texts.extend(piece.text for piece in burst)

    try:
        asyncio.run(reading())
    except Refusal as refusal:
        return "".join(texts), refusal
    return "".join(texts), None


@pytest.mark.parametrize(
    ("code", "kind"), [("deadline_passed", DeadlinePassed), ("unavailable", Unavailable), (None, Cancelled)]
)
def test_a_request_that_was_ended_says_by_what(code: str | None, kind: type[Refusal]) -> None:
    reason = "abort" if code is None else "error"
    both = [*pieces(0, reason, "the reason"), *pieces(1, reason, "the reason")]
    text, refusal = read(Part("id", both, DONE._replace(code=code, message="the reason")))
    assert text == "aa"
    assert type(refusal) is kind


def test_the_end_may_come_behind_the_pieces() -> None:
    end = DONE._replace(code="deadline_passed", message="the deadline passed")
    _, refusal = read(Part("id", pieces(0, "error", "the deadline passed"), None), Part("id", [], end))
    assert type(refusal) is DeadlinePassed


def test_a_choice_that_the_engine_gave_up_is_an_error_when_the_others_are_done() -> None:
    text, refusal = read(
        Part("id", pieces(0, "error", "its adapter is gone"), None), Part("id", pieces(1, "stop", None), DONE)
    )
    assert text == "aa"
    assert type(refusal) is Unavailable and refusal.message == "its adapter is gone"


def test_a_stream_that_ends_well_raises_nothing() -> None:
    assert read(Part("id", [*pieces(0, "stop", None), *pieces(1, "length", None)], DONE)) == ("aa", None)
