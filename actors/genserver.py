"""GenServer: the base of every server, and what its callbacks answer. Knows no transport and no clock.

A server's file has two halves. The client's functions come first and are the only ones that know its messages; the
callbacks follow. A callback changes `self` and says what happens next; it does not loop, sleep or wait.

    class Counter(GenServer):
        def init(self, start: int) -> None:
            self.count = start

        def handle_call(self, message: object, from_: From) -> Reply:
            self.count += 1
            return Reply(self.count)
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from actors.birth import path_of
from actors.exits import NORMAL, Reason
from actors.pid import From
from actors.supervision import ChildSpec

log = logging.getLogger(__name__)


class _Missing:
    """Told apart from None, which is an answer like any other."""


MISSING = _Missing()


@dataclass(frozen=True, slots=True)
class Continue:
    """Go on in `handle_continue` with this value, before any other message."""

    value: object = None


@dataclass(frozen=True, slots=True)
class Reply:
    value: object
    then: Continue | None = None


@dataclass(frozen=True, slots=True)
class NoReply:
    """Wait for the next message; a caller, if there is one, is answered later with `reply`."""

    then: Continue | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """End this process: `terminate` runs, then the caller gets `reply`, then everybody who watches gets the reason."""

    reason: Reason = NORMAL
    reply: object = MISSING


@dataclass(frozen=True, slots=True)
class Ignore:
    """From `init` only: this process is not needed, which is not a failure."""


Started: TypeAlias = None | Continue | Stop | Ignore
Handled: TypeAlias = NoReply | Stop
Answered: TypeAlias = Reply | NoReply | Stop


class GenServer:
    """One process: a state, and one message at a time. Nothing that must not be lost may depend on `terminate`."""

    trap_exit: ClassVar[bool] = False
    """True: exit signals become messages, and `terminate` runs at shutdown. False: they end the process at once."""

    def init(self, *args: Any, **kwargs: Any) -> Started:
        """Quick, as whoever starts the process waits for it; what takes long goes to `handle_continue`."""
        return None

    def handle_continue(self, value: Any) -> Handled:
        raise NotImplementedError(f"{type(self).__name__} has no handle_continue, but asked to go on with {value!r}")

    def handle_call(self, message: Any, from_: From) -> Answered:
        raise NotImplementedError(f"{type(self).__name__} does not answer {message!r}")

    def handle_cast(self, message: Any) -> Handled:
        raise NotImplementedError(f"{type(self).__name__} does not take {message!r}")

    def handle_info(self, message: Any) -> Handled:
        log.warning("%s got an unexpected message: %r", type(self).__name__, message)
        return NoReply()

    def terminate(self, reason: Reason) -> None:
        """Runs at Stop, after an exception, and at shutdown where exits are trapped; never at a kill."""

    def format_state(self) -> object:
        """What `sys.get_state` shows; a server with arrays or secrets shows something else."""
        return dict(vars(self))

    @classmethod
    def child_spec(cls, *args: object, **changes: Any) -> ChildSpec:
        """How a supervisor starts this server; `changes` are fields of ChildSpec."""
        return ChildSpec(**{"id": cls.__name__, "start": (path_of(cls), *args), **changes})
