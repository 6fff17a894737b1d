"""Pid: the address of one process, and From, the address of one waiting call. Plain data that crosses processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType, TypeAlias

Ref = NewType("Ref", int)
"""Names one monitor or one timer inside the process that made it."""


@dataclass(frozen=True, slots=True, order=True)
class Pid:
    """One life of a name: a restarted process keeps its name and gets the next epoch, so an old pid never means it."""

    name: str
    epoch: int

    def __str__(self) -> str:
        return f"{self.name}/{self.epoch}"

    @staticmethod
    def parse(text: str) -> Pid:
        name, _, epoch = text.rpartition("/")
        return Pid(name, int(epoch))


Server: TypeAlias = Pid | str
"""Where a message can go: a pid, or a name, which means whoever lives under it now."""


@dataclass(frozen=True, slots=True)
class From:
    """The right to answer one call; a server may keep it and reply later, or hand it to another process."""

    server: Pid
    caller: Pid | None  # None: the caller is not a process, but a program that called in
    ref: Ref
