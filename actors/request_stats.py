"""RequestServerStats: what one partition of the requests is doing, and has done."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from actors.journal import Journal
from actors.ledger import Ledger
from actors.pid import Pid


@dataclass(frozen=True, slots=True)
class RequestServerStats:
    """Counts since the first start of this partition, as far as its journal remembers; the first group is now."""

    is_open: bool = False
    is_draining: bool = False
    num_living: int = 0
    num_kept: int = 0
    num_on_board: int = 0
    owed_tokens: int = 0
    tokens_per_second: float | None = None
    polls: int = 0
    models: tuple[str, ...] = ()
    active_models: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    journal_bytes: int = 0
    journal_failure: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


NOT_OPEN = RequestServerStats()  # before the journal is ours


def stats_of(
    ledger: Ledger, journal: Journal, models: Iterable[Pid], adapters: tuple[str, ...], polls: int, is_draining: bool
) -> RequestServerStats:
    return RequestServerStats(
        is_open=True,
        is_draining=is_draining,
        num_living=ledger.num_living,
        num_kept=ledger.num_finished,
        num_on_board=sum(entry.epoch is not None for entry in ledger.entries.values()),
        owed_tokens=ledger.load.owed_tokens,
        tokens_per_second=ledger.load.pace.rate(),
        polls=polls,
        models=tuple(map(str, models)),
        active_models=tuple(board.epoch for board in ledger.active_boards()),
        adapters=adapters,
        journal_bytes=journal.num_bytes,
        journal_failure=journal.failure,
        counts=dict(ledger.counts),
    )
