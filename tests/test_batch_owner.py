"""deploy/jobs/owner.py: a batch's system ends with its batch. On a given clock, without Ray."""

from actors.exits import SHUTDOWN
from actors.inline import Inline
from actors.node import cast, join, spawn, whereis
from actors.supervision import Policy
from actors.supervisor import Supervisor
from actors.system_config import ROOT
from deploy.jobs.owner import NAME, SILENCE_SECONDS, Here, owner_of_system, owner_spec


def start() -> None:
    spawn(Supervisor, Policy(), [owner_spec("this batch")], name=ROOT)


def test_a_system_says_whose_it_is() -> None:
    with Inline():
        assert owner_of_system() is None
        start()
        assert owner_of_system() == "this batch"


def test_as_long_as_the_batch_says_that_it_is_there_the_system_stays() -> None:
    with Inline() as node:
        start()
        for _ in range(100):
            node.advance(SILENCE_SECONDS / 4)
            cast(NAME, Here())
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
