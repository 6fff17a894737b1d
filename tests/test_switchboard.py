"""Switchboards: messages between programs of one machine. Here both ends are in one program, on real sockets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from actors.channel import HEADER, Frames
from actors.switchboard import Answer, Cable, Switchboard, Unplugged

Came = SimpleQueue[tuple[bytes, Answer | None]]
SECONDS = 10


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Switchboard]:
    board = Switchboard(tmp_path / "sockets")
    yield board
    board.close()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Switchboard]:
    board = Switchboard(tmp_path / "sockets")
    yield board
    board.close()


@pytest.fixture
def came(there: Switchboard) -> Came:
    """What came at "there"."""
    came: Came = SimpleQueue()
    there.listen("there", lambda message, answer: came.put((message, answer)))
    return came


@pytest.fixture
def cable(here: Switchboard, came: Came) -> Cable:
    cable = here.dial("there")
    assert cable is not None
    return cable


def test_frames_come_out_whole_however_they_are_cut() -> None:
    messages = [(number, bytes([number]) * length) for number, length in enumerate((0, 1, 17, 300, 0, 5))]
    stream = b"".join(HEADER.pack(number, len(message)) + message for number, message in messages)
    for size in (1, 2, 7, 16, 17, len(stream)):
        frames = Frames()
        cuts = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [found for cut in cuts for found in frames.feed(cut)] == messages


def test_what_is_told_arrives_in_order_and_asks_for_no_answer(cable: Cable, came: Came) -> None:
    assert all(cable.tell(str(number).encode()) for number in range(500))
    assert [came.get(timeout=SECONDS) for _ in range(500)] == [(str(number).encode(), None) for number in range(500)]


def test_answers_find_their_questions_in_whatever_order_they_are_given(cable: Cable, came: Came) -> None:
    asked = {question: cable.ask(question) for question in (b"one", b"two", b"three")}
    open_questions = [came.get(timeout=SECONDS) for _ in asked]
    for question, answer in reversed(open_questions):
        assert answer is not None
        answer(question.upper())
    for question, to_come in asked.items():
        assert to_come is not None
        assert to_come.result(SECONDS) == question.upper()


def test_nobody_answers_to_a_name_that_is_not_there(here: Switchboard) -> None:
    assert here.dial("nobody") is None


def test_open_questions_fail_when_the_other_end_goes(cable: Cable, came: Came, there: Switchboard) -> None:
    asked = cable.ask(b"?")
    came.get(timeout=SECONDS)
    there.close()
    assert asked is not None
    with pytest.raises(Unplugged):
        asked.result(SECONDS)
    assert not cable.tell(b"!")
    assert cable.ask(b"?") is None
    assert cable.is_unplugged


def test_a_socket_whose_owner_is_gone_is_nobody(here: Switchboard, there: Switchboard, came: Came) -> None:
    there.close()
    assert here.dial("there") is None


def test_writing_does_not_wait_for_a_reader_who_does_not_read(here: Switchboard, there: Switchboard) -> None:
    may_read, came = threading.Event(), SimpleQueue[bytes]()

    def hear(message: bytes, answer: Answer | None) -> None:
        may_read.wait(SECONDS)
        came.put(message)

    there.listen("slow", hear)
    cable = here.dial("slow")
    assert cable is not None
    messages = [bytes([number]) * 200_000 for number in range(50)]
    assert all(cable.tell(message) for message in messages), "ten megabytes, which no socket holds"
    may_read.set()
    assert [came.get(timeout=SECONDS) for _ in messages] == messages


def test_a_message_that_cannot_be_handled_is_lost_alone(here: Switchboard, there: Switchboard) -> None:
    came = SimpleQueue[bytes]()

    def hear(message: bytes, answer: Answer | None) -> None:
        if message == b"bad":
            raise ValueError("bad")
        came.put(message)

    there.listen("choosy", hear)
    cable = here.dial("choosy")
    assert cable is not None
    assert cable.tell(b"bad")
    assert cable.tell(b"good")
    assert came.get(timeout=SECONDS) == b"good"


def test_a_question_that_nobody_waits_for_any_more_is_forgotten(cable: Cable, came: Came) -> None:
    given_up, kept = cable.ask(b"given up"), cable.ask(b"kept")
    assert given_up is not None
    assert kept is not None
    assert given_up.cancel()
    for _ in range(2):
        question, answer = came.get(timeout=SECONDS)
        assert answer is not None
        answer(question)
    assert kept.result(SECONDS) == b"kept"


def test_sockets_are_their_users_alone(here: Switchboard, came: Came, tmp_path: Path) -> None:
    assert (tmp_path / "sockets").stat().st_mode & 0o777 == 0o700


def test_a_place_that_cannot_hold_a_socket_is_told(tmp_path: Path) -> None:
    board = Switchboard(tmp_path / ("long" * 30))
    with pytest.raises(OSError, match="too long"):
        board.listen("x", lambda message, answer: None)
    assert board.dial("x") is None
    board.close()
