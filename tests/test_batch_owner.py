"""deploy/jobs/owner.py: a batch's system ends with its batch. On a given clock, without Ray."""

import pytest

from actors.exits import SHUTDOWN
from actors.inline import Inline
from actors.node import join, spawn, whereis
from actors.refusals import Unavailable
from actors.supervision import Policy
from actors.supervisor import Supervisor
from actors.system_config import ROOT
from deploy.jobs.owner import (
    BEAT_SECONDS,
    SILENCE_SECONDS,
    Owned,
    finds_its_system,
    owner_of_system,
    owner_spec,
    say_here,
)


def start() -> None:
    spawn(Supervisor, Policy(), [owner_spec("this batch")], name=ROOT)


def test_a_system_says_whose_it_is() -> None:
    with Inline():
        assert owner_of_system() is None
        start()
        assert owner_of_system() == Owned("this batch", 0)


def test_a_batch_finds_the_system_that_it_left_behind() -> None:
    with Inline() as node:
        assert not finds_its_system("this batch", node.advance)
        start()
        assert finds_its_system("this batch", node.advance)


def test_a_batch_that_is_there_keeps_its_system_from_others() -> None:
    with Inline() as node:
        start()
        began = node.now()

        def wait(seconds: float) -> None:
            node.advance(seconds)
            if node.now() - began > BEAT_SECONDS:
                say_here(None)

        with pytest.raises(Unavailable, match="a system runs here already"):
            finds_its_system("another batch", wait)


def test_a_system_that_a_killed_batch_left_behind_is_waited_for() -> None:
    with Inline() as node:
        start()
        began = node.now()
        assert not finds_its_system("another batch", node.advance)
        assert whereis(ROOT) is None
        assert node.now() - began == pytest.approx(SILENCE_SECONDS, abs=2 * BEAT_SECONDS)


def test_a_system_that_does_not_end_is_not_waited_for_for_ever() -> None:
    with Inline() as node:
        spawn(Supervisor, Policy(), [owner_spec("this batch", silence_seconds=1000.0)], name=ROOT)
        began = node.now()
        with pytest.raises(Unavailable, match="a system runs here already"):
            finds_its_system("another batch", node.advance)
        assert node.now() - began == pytest.approx(2 * SILENCE_SECONDS, abs=BEAT_SECONDS)


def test_a_system_of_no_batch_is_not_waited_for() -> None:
    with Inline() as node:
        spawn(Supervisor, Policy(), [], name=ROOT)
        with pytest.raises(Unavailable, match="a system runs here already"):
            finds_its_system("this batch", node.advance)


def test_as_long_as_the_batch_says_that_it_is_there_the_system_stays() -> None:
    with Inline() as node:
        start()
        for _ in range(100):
            node.advance(SILENCE_SECONDS / 4)
            say_here(None)
        assert whereis(ROOT) is not None


def test_a_batch_that_is_silent_takes_its_system_along() -> None:
    with Inline() as node:
        start()
        root = whereis(ROOT)
        assert root is not None
        node.advance(SILENCE_SECONDS - 2)
        assert whereis(ROOT) == root
        node.advance(4)
        assert whereis(ROOT) is None
        assert join(root) in (SHUTDOWN, "noproc")


def test_a_batch_finds_the_next_life_of_the_owner_that_it_speaks_to() -> None:
    with Inline() as node:
        start()
        owner = say_here(None)
        assert owner is not None and say_here(owner) == owner
        node.kill(owner)
        assert say_here(owner) is None
        node.advance(BEAT_SECONDS)
        again = say_here(None)
        assert again is not None and again.epoch == owner.epoch + 1
        assert owner_of_system() == Owned("this batch", 1)


def test_who_speaks_where_nobody_is_goes_on() -> None:
    with Inline():
        assert say_here(None) is None
