"""The tree: its own supervisors, inline, whose children start side by side; and the flat one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.exits import KILL
from actors.genserver import GenServer, Started, Stop
from actors.inline import Inline
from actors.node import exit, lives, spawn, whereis
from actors.supervision import ChildSpec, Policy
from actors.supervisor import which_children
from actors.system_config import ROOT, SystemConfig
from actors.tree import SteadySupervisor, root_children, status, stop_root
from tests.serving import tiny_system


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


def test_lives_in_an_earlier_system_on_the_same_ray_are_no_restarts(node: Inline, tmp_path: Path) -> None:
    config = tiny_system(tmp_path)
    for number in range(3):
        system = replace(config, lives_before=lives(ROOT))
        spawn(SteadySupervisor, Policy(), [ChildSpec("watchdog", (Idle, system))], name=ROOT)
        exit(f"{ROOT}.watchdog", KILL)
        node.run()
        root = status()
        assert root is not None and root.pid == f"{ROOT}/{number + 1}" and root.restarts == 0
        assert [(child.pid, child.restarts) for child in root.children] == [(f"{ROOT}.watchdog/{2 * number + 2}", 1)]
        stop_root()


class Idle(GenServer):
    """Takes what a watchdog takes."""

    def init(self, config: SystemConfig) -> None: ...


class Forgetful(list[str]):
    """Counts every try as the first."""

    def count(self, value: object) -> int:
        return 1


def test_in_a_flat_tree_the_root_has_all_processes_under_the_names_that_they_have_elsewhere(tmp_path: Path) -> None:
    config = tiny_system(tmp_path, is_flat=True, replicas=2, partitions=2)
    specs = root_children(config)
    assert {spec.type for spec in specs} == {"worker"}
    names = [f"{ROOT}.{spec.id}" for spec in specs]
    assert names == [*config.model_names, *config.partition_names, f"{ROOT}.watchdog"]
    assert config.models_supervisor == ROOT, "who is told which death was a request's doing"
