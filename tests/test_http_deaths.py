"""Counting deaths by looking at the tree now and then."""

import pytest

from deploy.http.backend import Process
from deploy.http.deaths import Deaths, kind_of


def tree(*children: tuple[str, int, str | None]) -> Process:
    return Process("root", "running", children=tuple(Process(name, "running", *rest) for name, *rest in children))  # type: ignore[arg-type]


def test_each_death_counts_once_with_its_reason() -> None:
    deaths = Deaths()
    deaths.look(tree(("model", 0, None), ("door", 0, None)))
    deaths.look(tree(("model", 1, "killed"), ("door", 0, None)))
    deaths.look(tree(("model", 1, "killed"), ("door", 2, "('error', ValueError())")))
    deaths.look(tree(("model", 2, "noproc"), ("door", 2, "('error', ValueError())")))
    assert deaths.by_reason == {"killed": 1, "error": 2, "noproc": 1}


def test_a_supervisor_that_begins_anew_takes_nothing_back() -> None:
    deaths = Deaths()
    deaths.look(tree(("model", 3, "killed")))
    deaths.look(tree(("model", 1, "killed")))
    assert deaths.by_reason == {"killed": 4}


def system(*models: tuple[str, int, str | None], state: str = "running") -> Process:
    """A root over a supervisor of models."""
    children = tuple(Process(name, state, *rest) for name, *rest in models)  # type: ignore[arg-type]
    return Process("root", "running", children=(Process("models", "running", children=children),))


@pytest.mark.parametrize("absent", [system(), Process("root", "down")], ids=["supervisor_busy", "root_away"])
def test_who_is_not_seen_for_a_while_does_not_die_again(absent: Process) -> None:
    deaths = Deaths()
    for look in (system(("model-0", 5, "killed"), ("model-1", 3, "killed")), absent) * 2:
        deaths.look(look)
    deaths.look(system(("model-0", 6, "killed"), ("model-1", 3, "killed")))
    assert deaths.by_reason == {"killed": 9}


def test_a_system_that_begins_anew_while_nobody_is_seen_counts_from_nothing() -> None:
    deaths = Deaths()
    for look in (system(("model", 3, "killed")), Process("root", "down"), system(("model", 0, None))):
        deaths.look(look)
    deaths.look(system(("model", 4, "killed")))
    assert deaths.by_reason == {"killed": 7}


def test_one_that_is_being_restarted_by_a_younger_supervisor_does_not_die_again() -> None:
    deaths = Deaths()
    deaths.look(system(("model", 5, "killed")))
    deaths.look(system(("model", 1, "killed"), state="restarting"))
    deaths.look(system(("model", 6, "killed")))
    assert deaths.by_reason == {"killed": 6}


@pytest.mark.parametrize(
    ("reason", "kind"), [("killed", "killed"), ("('door_closed',)", "door_closed"), (None, "unknown"), ("", "unknown")]
)
def test_a_reasons_first_word_is_its_kind(reason: str | None, kind: str) -> None:
    assert kind_of(reason) == kind
