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


@pytest.mark.parametrize(
    ("reason", "kind"), [("killed", "killed"), ("('door_closed',)", "door_closed"), (None, "unknown"), ("", "unknown")]
)
def test_a_reasons_first_word_is_its_kind(reason: str | None, kind: str) -> None:
    assert kind_of(reason) == kind
