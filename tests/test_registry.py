"""The registry: one living process a key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from actors import registry, sys
from actors.exits import AlreadyStarted, NoProc
from actors.inline import Inline
from actors.node import exit, spawn
from actors.pid import Pid
from actors.registry import Registry
from tests.servers import Echo


@pytest.fixture
def node() -> Iterator[Inline]:
    with Inline() as node:
        yield node


@pytest.fixture
def names(node: Inline) -> Pid:
    return spawn(Registry, name="registry")


def test_registered_process_is_found_by_its_key(names: Pid) -> None:
    pid = spawn(Echo)
    registry.register(names, "a", pid)
    assert registry.lookup(names, "a") == pid
    assert registry.lookup(names, "b") is None


def test_key_of_a_living_process_is_not_given_to_another(names: Pid) -> None:
    first, second = spawn(Echo), spawn(Echo)
    registry.register(names, "a", first)
    with pytest.raises(AlreadyStarted) as taken:
        registry.register(names, "a", second)
    assert taken.value.pid == first


def test_registering_twice_is_no_error_and_one_entry(names: Pid) -> None:
    pid = spawn(Echo)
    registry.register(names, "a", pid)
    registry.register(names, "a", pid)
    assert registry.count(names) == 1


def test_key_is_freed_at_death(names: Pid) -> None:
    first, second = spawn(Echo), spawn(Echo)
    registry.register(names, "a", first)
    registry.register(names, "b", first)
    exit(first, "kill")
    assert registry.lookup(names, "a") is None and registry.count(names) == 0
    registry.register(names, "a", second)
    assert registry.lookup(names, "a") == second


def test_heir_gets_the_key_even_if_the_registry_has_not_yet_heard_of_the_death(node: Inline, names: Pid) -> None:
    first, second = spawn(Echo), spawn(Echo)
    registry.register(names, "a", first)
    sys.suspend(names)
    exit(first, "kill")  # the Down now waits
    cell = node._cells[names]
    downs = list(cell.mailbox)
    cell.mailbox.clear()
    sys.resume(names)
    registry.register(names, "a", second)
    for down in downs:  # and comes when the key is another's
        cell.enqueue(*down)
    node.run()
    assert registry.lookup(names, "a") == second


def test_key_can_be_given_back(names: Pid) -> None:
    first, second = spawn(Echo), spawn(Echo)
    registry.register(names, "a", first)
    registry.unregister(names, "a", second)  # not his to give
    assert registry.lookup(names, "a") == first
    registry.unregister(names, "a", first)
    registry.register(names, "a", second)
    exit(first, "kill")
    assert registry.lookup(names, "a") == second


def test_one_process_may_have_many_keys(names: Pid) -> None:
    pid = spawn(Echo)
    for key in "abc":
        registry.register(names, key, pid)
    assert registry.keys(names, pid) == ["a", "b", "c"]


def test_dead_process_that_is_registered_does_not_stay(node: Inline, names: Pid) -> None:
    pid = spawn(Echo)
    exit(pid, "kill")
    registry.register(names, "a", pid)
    node.run()
    assert registry.lookup(names, "a") is None


def test_unknown_registry_is_noproc(node: Inline) -> None:
    with pytest.raises(NoProc):
        registry.lookup("nowhere", "a")
