"""Birth: what it takes to start a process. Names a server by its path, so that only the new process imports it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, TypeAlias

from actors.pid import Pid

Which: TypeAlias = type[Any] | str
"""A GenServer, or its path, "module:Class"."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What Ray sets aside for the process; nothing by default, as most servers wait most of the time."""

    cpus: float = 0.0
    gpus: float = 0.0


NO_RESOURCES = Resources()


@dataclass(frozen=True, slots=True)
class Birth:
    server: Which
    args: tuple[object, ...] = ()
    name: str | None = None  # at most one living process has it
    prefix: str = ""  # of the name that a process without one is given
    parent: Pid | None = None
    resources: Resources = NO_RESOURCES


def path_of(server: Which) -> Which:
    """A class of a script's own `__main__` or of a function cannot be imported elsewhere, and stays a class."""
    if isinstance(server, str) or server.__module__ == "__main__" or "<locals>" in server.__qualname__:
        return server
    return f"{server.__module__}:{server.__qualname__}"


def class_of(server: Which) -> type[Any]:
    if not isinstance(server, str):
        return server
    module, _, qualname = server.partition(":")
    found: object = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found  # type: ignore[return-value]


def label_of(server: Which) -> str:
    """The readable part of the name that a process without one is given."""
    path = server if isinstance(server, str) else server.__qualname__
    return path.rpartition(":")[2].rpartition(".")[2]
