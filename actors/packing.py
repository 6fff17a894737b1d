"""Packing: a message as bytes by Python's own pickle, where it has nothing of others in it.

It takes half the time of Ray's, which carries by value what only one program knows, and in ways of their own what
it was told of. So whatever has a class in it that is not the project's is left to that.
"""

import pickle
from io import BytesIO
from typing import Any

from actors.exits import NOPROC, Died, NoProc, NotCarried
from actors.pid import Pid

ROOMS = frozenset(("actors", "deploy", "engine", "loaders"))


class Foreign(Exception):
    """Something of others is in it."""


class Packer(pickle.Pickler):
    """Asked by Python for each class, and for each thing that is no plain value."""

    known: set[type] = set()

    def reducer_override(self, thing: Any) -> Any:
        kind = thing if isinstance(thing, type) else type(thing)
        if kind not in self.known:
            if kind.__module__.partition(".")[0] not in ROOMS:
                raise Foreign
            self.known.add(kind)
        return NotImplemented


def packed(value: object) -> bytes | None:
    """None where it is to be packed otherwise."""
    whole = BytesIO()
    try:
        Packer(whole, pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception:  # the other way says what is wrong, if anything is
        return None
    return whole.getvalue()


def value_of(pid: Pid, answer: bytes) -> Any:
    """What a process answered; raised, if it had no answer."""
    is_reply, value = pickle.loads(answer)
    if is_reply:
        return value
    if isinstance(value, NotCarried):
        raise value
    raise NoProc(pid, NOPROC) if value == NOPROC else Died(pid, value)
