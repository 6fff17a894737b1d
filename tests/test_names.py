"""Names: one living process a name, and every epoch once, whatever two claimants do to each other."""

from __future__ import annotations

import threading

import pytest

from actors import names
from actors.exits import AlreadyStarted
from actors.pid import Pid


class Memory:
    """A table, as the control store is one."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def put_new(self, key: str, value: bytes) -> bool:
        with self.lock:
            return self.rows.setdefault(key, value) is value and list(self.rows).count(key) == 1

    def put(self, key: str, value: bytes) -> None:
        self.rows[key] = value

    def get(self, key: str) -> bytes | None:
        return self.rows.get(key)

    def delete(self, key: str) -> None:
        self.rows.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        with self.lock:
            return [key for key in self.rows if key.startswith(prefix)]


def test_first_life_of_a_name_is_epoch_one() -> None:
    table = Memory()
    assert names.claim("model", table, lambda pid: False) == Pid("model", 1)
    assert names.latest("model", table) == Pid("model", 1)
    assert names.latest("mod", table) is None


def test_next_life_gets_the_next_epoch() -> None:
    table = Memory()
    names.born(names.claim("model", table, lambda pid: False), table)
    assert names.claim("model", table, lambda pid: False) == Pid("model", 2)


def test_tenth_epoch_comes_after_the_ninth() -> None:
    table = Memory()
    for epoch in range(1, 12):
        pid = names.claim("model", table, lambda pid: False)
        names.born(pid, table)
        assert pid.epoch == epoch
    assert len(table.rows) == 1


def test_name_of_a_living_process_is_taken() -> None:
    table = Memory()
    pid = names.claim("model", table, lambda pid: False)
    names.born(pid, table)
    with pytest.raises(AlreadyStarted) as taken:
        names.claim("model", table, lambda pid: True)
    assert taken.value.pid == pid


def test_claimant_that_died_before_the_birth_holds_the_name_only_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "BIRTH_SECONDS", 0.02)
    table = Memory()
    names.claim("model", table, lambda pid: False)
    assert names.claim("model", table, lambda pid: False) == Pid("model", 2)


def test_an_epoch_that_was_had_and_forgotten_is_not_given_out_again() -> None:
    """A claimant is slow between its look and its claim, and two others live and die meanwhile."""
    table = Memory()
    first = names.claim("model", table, lambda pid: False)
    names.born(first, table)

    def slowly(pid: Pid) -> bool:
        while pid == first and len(between) < 2:
            between.append(names.claim("model", table, lambda pid: False))
            names.born(between[-1], table)
        return False

    between: list[Pid] = []
    assert names.claim("model", table, slowly) == Pid("model", 4)
    assert [pid.epoch for pid in between] == [2, 3]
    assert len(table.rows) == 1


def test_of_many_claimants_one_wins_and_the_others_learn_his_pid() -> None:
    for _ in range(50):
        table, living = Memory(), set[Pid]()
        won: list[Pid] = []
        lost: list[Pid] = []

        def claim(
            table: Memory = table, living: set[Pid] = living, won: list[Pid] = won, lost: list[Pid] = lost
        ) -> None:
            try:
                pid = names.claim("model", table, lambda pid: pid in living)
            except AlreadyStarted as taken:
                lost.append(taken.pid)
                return
            living.add(pid)
            names.born(pid, table)
            won.append(pid)

        threads = [threading.Thread(target=claim) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and lost == won * 3
