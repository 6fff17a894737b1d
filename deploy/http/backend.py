"""Backend: what the door needs of whatever answers requests, and the records in which it is told. Knows no HTTP.

A request's id is chosen by who asks. The same request under the same id is attached to what is there, so a client that
repeats itself gets one generation; another request under it is a conflict. A choice's pieces have positions, and a
reader says how many of each choice it has: so a stream can be left and taken up again, by anybody, at any piece.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from actors.running import Running
from engine.completion import Completion, Piece, Usage
from engine.event import PromptScored
from engine.limits import Capacity
from engine.refusal import Refusal
from engine.request import Request
from engine.stats import EngineStats

Part = Piece | PromptScored | Usage
"""A stream's parts: the prompt's scores before the first piece if they are wanted, and the usage as the last one."""


class Cancelled(Refusal):
    """The request was cancelled before its end."""

    code: ClassVar[str] = "request_cancelled"


class OutOfRange(Refusal):
    """A reader says that it has more than there is."""

    code: ClassVar[str] = "out_of_range"


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a request is kept: until when, and how long without a reader. None: to its end."""

    deadline_seconds: float | None = None
    lease_seconds: float | None = None


NO_TERMS = Terms()


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The model that is served."""

    name: str
    capacity: Capacity
    fingerprint: str
    max_sequences: int  # choices that run at once


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """An adapter that requests may name."""

    name: str
    version: str
    rank: int
    num_bytes: int
    loaded_at: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the supervision tree, and those below it."""

    name: str
    state: str  # "running", "busy", "restarting", "down", "suspended"
    restarts: int = 0
    last_reason: str | None = None
    children: tuple["Process", ...] = ()


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the start, over all lives of the engines, but for `engine`: the present ones', added up."""

    engine: EngineStats | None
    num_waiting: int = 0  # accepted, and not yet in the batch
    num_running: int = 0
    restarts: Mapping[str, int] = field(default_factory=dict)  # by reason
    counts: Mapping[str, int] = field(default_factory=dict)  # what the request servers counted
    num_engines: int = 1  # at work at a time


class Backend(Protocol):
    """What answers requests. Expected trouble is raised as a Refusal."""

    async def open(self) -> None:
        """Begin; on the event loop that everything else is asked on."""
        ...

    async def close(self) -> None: ...

    async def card(self) -> ModelCard:
        """The model; refused as unavailable while it is loading."""
        ...

    async def why_not_ready(self) -> str | None:
        """Why nothing can be served now, in a sentence, or None."""
        ...

    async def generate(self, request: Request, terms: Terms = NO_TERMS) -> Completion:
        """The whole answer. Raises what ended the request, if it was not its own last token."""
        ...

    async def stream(self, request: Request, terms: Terms = NO_TERMS) -> AsyncIterator[tuple[Part, ...]]:
        """The answer in bursts; the request is accepted when this returns."""
        ...

    async def follow(
        self, request_id: str, tenant: str, had: tuple[int, ...], *, again: bool = False
    ) -> AsyncIterator[tuple[Part, ...]]:
        """Take a stream up again, behind the pieces that the reader has of each choice; `again`: with these too."""
        ...

    async def cancel(self, request_id: str, tenant: str) -> bool:
        """End a request and free what it holds; False if it had ended already."""
        ...

    async def adapters(self) -> tuple[AdapterCard, ...]: ...

    async def loadable(self) -> tuple[str, ...]:
        """What `load_adapter` would find."""
        ...

    async def load_adapter(self, name: str, source: str) -> AdapterCard:
        """Load `source`, an entry of the adapters' directory, and publish it under a name at once or not at all."""
        ...

    async def unload_adapter(self, name: str) -> None: ...

    async def stats(self) -> Stats: ...

    async def running(self) -> tuple[Running, ...]: ...

    async def tree(self) -> Process: ...

    async def suspend(self) -> None:
        """Let everything wait where it is."""
        ...

    async def resume(self) -> None: ...

    async def kill_engine(self) -> None:
        """End the process that has the model, as a crash would."""
        ...
