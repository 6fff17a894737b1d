"""Ordering: a sender's messages come out as they went in, however they arrive."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.ordering import Ordering


def test_early_message_waits_for_the_ones_before_it() -> None:
    ordering: Ordering[str] = Ordering()
    assert ordering.arrive("s", 1, "b") == []
    assert ordering.missing("s") == 0
    assert ordering.arrive("s", 0, "a") == ["a", "b"]
    assert ordering.missing("s") is None


def test_senders_do_not_wait_for_each_other() -> None:
    ordering: Ordering[str] = Ordering()
    assert ordering.arrive("one", 5, "late") == []
    assert ordering.arrive("two", 0, "now") == ["now"]


def test_lost_message_is_given_up_only_if_it_is_still_missing() -> None:
    ordering: Ordering[str] = Ordering()
    ordering.arrive("s", 2, "c")
    assert ordering.skip("s", 1) == []
    assert ordering.skip("s", 0) == ["c"]
    assert ordering.skip("s", 0) == []
    assert ordering.arrive("s", 3, "d") == ["d"]


def test_message_that_was_given_up_is_handled_when_it_comes() -> None:
    ordering: Ordering[str] = Ordering()
    ordering.arrive("s", 1, "b")
    ordering.skip("s", 0)
    assert ordering.arrive("s", 0, "a") == ["a"]


@given(st.permutations(list(range(12))))
def test_every_arrival_order_gives_the_sending_order(arrivals: list[int]) -> None:
    ordering: Ordering[int] = Ordering()
    assert [item for number in arrivals for item in ordering.arrive("s", number, number)] == list(range(12))
