"""A client program's way to a partition, and its readers who read slowly."""

import asyncio
import queue
import threading
from typing import Any

import pytest

from actors import line
from actors.exits import Died
from actors.inbox import Inbox
from actors.line import Line
from actors.polls import MAX_PIECES, End, Part, Poll
from actors.refusals import Unavailable
from engine.completion import Choice, Completion, Usage

USAGE = Usage(1, 4)
END = End(USAGE, None, None, None)
WHOLE = End(USAGE, None, None, Completion("same", (Choice(0, "aaaa", (97,) * 4, "length"),), USAGE))


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
    turn.release()
    finish(way)


@pytest.mark.parametrize("had", [(1,), (5,), None])
def test_a_late_answer_to_an_earlier_reader_is_not_the_next_ones(
    monkeypatch: pytest.MonkeyPatch, had: tuple[int] | None
) -> None:
    """The first has three pieces and waits for more, when it leaves and another takes the same request up."""
    asked: queue.Queue[Poll] = queue.Queue()
    answers: queue.Queue[list[Part]] = queue.Queue()

    def poll(pid: Any, message: Poll) -> list[Part]:
        asked.put(message)
        return answers.get()

    monkeypatch.setattr(line.request_server, "poll", poll)
    monkeypatch.setattr(line, "whereis", lambda name: name)
    way, first, second = Line("there", 1.0), Inbox("same", (3,)), Inbox("same", had)
    way.follow(first)
    assert asked.get().wants == {"same": (3,)}
    way.drop(first)
    assert way.reading(second) is way
    way.follow(second)
    answers.put([Part("same", [piece(3)], END)])
    assert asked.get(timeout=10).wants == {"same": had}
    assert not second.is_over and not second.has_pieces
    if had is None:
        answers.put([Part("same", [], WHOLE)])
        assert second.take(10) == [] and second.completion() is WHOLE.completion
    else:
        answers.put([Part("same", [piece(had[0])], END)])
        assert [found.position for found in second.take(10)] == [had[0]]
    finish(way)


def test_who_waits_at_a_line_that_is_closed_is_told_and_who_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    is_asked = threading.Event()

    def poll(pid: Any, message: Poll) -> list[Part]:
        is_asked.set()
        return []

    monkeypatch.setattr(line.request_server, "poll", poll)
    monkeypatch.setattr(line, "whereis", lambda name: name)
    way, waiting = Line("there", 1.0), Inbox("waiting", (0,))
    way.follow(waiting)
    assert is_asked.wait(10)
    finish(way)
    assert waiting.take(10) == []
    with pytest.raises(Unavailable, match="this client was closed"):
        waiting.ended()
    with pytest.raises(Unavailable, match="this client was closed"):
        way.follow(Inbox("late", (0,)))


def polled_until_closed(monkeypatch: pytest.MonkeyPatch) -> tuple[Line, list[str]]:
    """A line whose poll fails as soon as it is closed, as with the system that it leads to; and who was looked for."""
    sought: list[str] = []
    is_asked = threading.Event()

    def poll(pid: Any, message: Poll) -> list[Part]:
        is_asked.set()
        while not way._is_closed:
            pass
        raise Died("there", "killed")

    def whereis(name: str) -> str:
        sought.append(name)
        return name

    monkeypatch.setattr(line.request_server, "poll", poll)
    monkeypatch.setattr(line, "whereis", whereis)
    way = Line("there", 60.0)
    way.follow(Inbox("waiting", (0,)))
    assert is_asked.wait(10)
    return way, sought


def test_a_line_that_is_closed_asks_nobody_any_more_so_that_its_node_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    way, sought = polled_until_closed(monkeypatch)
    way.close()
    assert way._thread is not None and not way._thread.is_alive()
    assert sought == ["there"]


def test_an_event_loop_does_not_wait_for_the_lines_that_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    way, _ = polled_until_closed(monkeypatch)

    async def close() -> None:
        monkeypatch.setattr(way._thread, "join", lambda timeout: pytest.fail("it waits"))
        way.close()

    asyncio.run(close())
    monkeypatch.undo()
    finish(way)


def finish(way: Line) -> None:
    """Close it, and let its thread end while it can still poll."""
    way.close()
    assert way._thread is not None
    way._thread.join(10)


def piece(position: int) -> Any:
    return (0, position, "a", (97,), None, "", None, None)
