"""The tree's own supervisors, inline: children that start side by side."""

from collections.abc import Iterator

import pytest

from actors.genserver import GenServer, Started, Stop
from actors.inline import Inline
from actors.node import spawn, whereis
from actors.supervision import ChildSpec, Policy
from actors.supervisor import which_children
from actors.tree import SteadySupervisor


class Reluctant(GenServer):
    """Starts at the second try."""

    def init(self, tries: list[str], name: str) -> Started:
        tries.append(name)
        return Stop("not yet") if tries.count(name) == 1 else None


@pytest.fixture
def node() -> Iterator[Inline]:
    with Inline() as node:
        yield node


def test_all_children_that_do_not_start_at_once_are_tried_again(node: Inline) -> None:
    tries = ["c"]
    specs = [ChildSpec(name, (Reluctant, tries, name)) for name in "abc"]
    sup = spawn(SteadySupervisor, Policy(max_restarts=5), specs, name="sup")
    node.run()
    assert tries == ["c", "a", "b", "c", "a", "b"]
    assert {child.id: (child.state, child.num_restarts) for child in which_children(sup)} == {
        "a": ("running", 0),
        "b": ("running", 0),
        "c": ("running", 0),
    }


def test_what_never_starts_is_one_time_too_many_and_ends_what_did(node: Inline) -> None:
    tries = ["c", "c"]
    specs = [ChildSpec(name, (Reluctant, tries if name == "c" else Forgetful(), name)) for name in "ac"]
    spawn(SteadySupervisor, Policy(max_restarts=2), specs, name="sup")
    node.run()
    assert whereis("sup") is None and whereis("sup.c") is None


class Forgetful(list[str]):
    """Counts every try as the first."""

    def count(self, value: object) -> int:
        return 1
