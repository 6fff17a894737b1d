"""A host without Ray: messages that come numbered, out of order, or never."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from actors import host as hosting
from actors.birth import Birth
from actors.envelope import Call, Cast, Envelope, ExitSignal
from actors.exits import NOPROC
from actors.host import Host, label
from actors.node import leave
from actors.pid import From, Pid
from tests.servers import Block, Echo

SENDER = "ab" * hosting.SENDER_BYTES
SECONDS = 10


class LonelyNode:
    """As much of a node as one process needs that talks to nobody."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def now(self) -> float:
        return time.monotonic()

    def answer(self, from_: From, value: object) -> None:
        self.host.reply(from_.ref, value)

    def listen(self) -> None: ...


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(hosting, "GAP_SECONDS", 0.1)
    nodes: list[Any] = []

    def make_node(host: Host) -> Any:
        nodes.append(LonelyNode(host))
        return nodes[0]

    host = Host(Pid("echo", 1), Birth(Echo), make_node, pickle.dumps, lambda: None)
    yield host
    host.die("shutdown")
    leave(nodes[0])


def numbered(number: int, envelope: Envelope) -> bytes:
    return label(SENDER, number) + pickle.dumps((None, envelope))


def ask(host: Host, number: int, message: object) -> SimpleQueue[bytes]:
    answers: SimpleQueue[bytes] = SimpleQueue()
    host.hear(numbered(number, Call(message)), answers.put)
    return answers


def answer_in(answers: SimpleQueue[bytes]) -> Any:
    return pickle.loads(answers.get(timeout=SECONDS))


def test_a_question_is_answered_where_it_came_from(host: Host) -> None:
    assert answer_in(ask(host, 0, "hello")) == (True, "hello")


def test_messages_behind_a_lost_one_are_handled_after_a_while(host: Host) -> None:
    begun = time.monotonic()
    later = [ask(host, number, number) for number in (1, 2, 3)]
    assert threading.active_count() < 20, "one timer waits, and not one a message"
    assert [answer_in(answers) for answers in later] == [(True, 1), (True, 2), (True, 3)]
    assert time.monotonic() - begun >= 0.1
    assert answer_in(ask(host, 4, "next")) == (True, "next")


def test_a_signal_behind_a_lost_message_ends_a_process_that_is_at_work(host: Host) -> None:
    host.hear(numbered(0, Cast(Block(3.0))), None)
    host.hear(numbered(2, ExitSignal(None, "enough")), None)
    until = time.monotonic() + 2.0
    while host.reason is None and time.monotonic() < until:
        time.sleep(0.01)
    assert host.reason == "enough"


def test_who_asks_a_process_that_has_ended_is_told_so(host: Host) -> None:
    host.die("shutdown")
    assert answer_in(ask(host, 0, "hello")) == (False, NOPROC)
