"""LedgerRecords: what can happen to a request, as it stands in the journal. Replaying them makes the ledger again.

Each carries the moment it happened, so that a replay needs no clock.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Opened(NamedTuple):
    """A request server began to write. `clock` names the clock that all moments after it are of."""

    now: float
    clock: str


class Accepted(NamedTuple):
    """A request became ours to answer."""

    now: float
    request: bytes
    body: bytes  # digest of what was asked, without the id
    deadline: float | None
    lease_seconds: float | None  # None: it is finished though nobody asks for it


class Attempted(NamedTuple):
    """Requests are about to be sent to a model server: written before."""

    now: float
    epoch: str
    ids: tuple[str, ...]
    is_alone: bool


class Told(NamedTuple):
    """A model server told these events."""

    now: float
    epoch: str
    events: bytes


class Crashed(NamedTuple):
    """A model server died with what it had on board; `alone` is the request that it was running by itself."""

    now: float
    epoch: str
    alone: str | None


class Released(NamedTuple):
    """What a model server had on board is to be sent again, and nobody is to blame."""

    now: float
    epoch: str


class Ended(NamedTuple):
    """A request ended without its last token. `code` is a refusal's, or None where the client wanted it so."""

    now: float
    id: str
    code: str | None
    message: str | None


class Kept(NamedTuple):
    """One request's whole state: what compaction leaves of its history."""

    now: float
    accepted: tuple[Any, ...]  # the fields of Accepted
    events: bytes
    epoch: str | None
    is_alone: bool
    crashes: int
    crashes_alone: int
    ended: tuple[Any, ...] | None  # the fields of Ended
    finished_at: float | None


class More(NamedTuple):
    """What else happened to the request of the Kept before: a record does not grow without end."""

    now: float
    id: str
    events: bytes


class Counted(NamedTuple):
    """What had been counted when compaction left the rest behind."""

    now: float
    counts: dict[str, int]


Record = Opened | Accepted | Attempted | Told | Crashed | Released | Ended | Kept | More | Counted
KINDS: dict[str, type[Record]] = {
    kind.__name__: kind for kind in (Opened, Accepted, Attempted, Told, Crashed, Released, Ended, Kept, More, Counted)
}


def to_plain(record: Record) -> list[Any]:
    return [type(record).__name__, *record]


def from_plain(plain: Sequence[Any]) -> Record:
    """The record again. The journal's checksums vouch for it; a kind we do not know is a journal of a later version."""
    kind = KINDS.get(plain[0])
    if kind is None:
        raise ValueError(f"the journal has a record of kind {plain[0]!r}, which this version does not know")
    values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in plain[1:]]
    return kind(*values)
