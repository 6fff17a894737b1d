"""A client program's way to a partition, and its readers who read slowly."""

import threading
from typing import Any

import pytest

from actors import line
from actors.inbox import Inbox
from actors.line import Line
from actors.polls import MAX_PIECES, Part, Poll


def test_a_reader_that_takes_nothing_hears_no_more_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Poll] = []
    turn, told = threading.Semaphore(0), threading.Semaphore(0)

    def poll(pid: Any, message: Poll) -> list[Part]:
        """Half of what fits, of everything that is wanted; the test lets each poll come."""
        asked.append(message)
        told.release()
        turn.acquire()
        news = [(name, had or (0,)) for name, had in message.wants.items()]
        return [Part(name, [piece(had[0] + more) for more in range(MAX_PIECES // 2)], None) for name, had in news]

    monkeypatch.setattr(line.request_server, "poll", poll)
    monkeypatch.setattr(line, "whereis", lambda name: name)
    way, slow = Line("there", 1.0), Inbox("slow", (0,))
    way.follow(slow)
    for _ in range(2):
        told.acquire()
        turn.release()
    told.acquire()
    assert (asked[-1].wants, asked[-1].kept) == ({}, ("slow",))
    assert asked[-1].wait_seconds < 1
    assert len(slow.take(0)) == MAX_PIECES
    turn.release()
    told.acquire()
    assert (asked[-1].wants, asked[-1].kept) == ({"slow": (MAX_PIECES,)}, ())
    way.close()
    turn.release()


def piece(position: int) -> Any:
    return (0, position, "a", (97,), None, "", None, None)
