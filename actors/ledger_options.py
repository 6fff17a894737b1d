"""LedgerOptions: how much a request server may hold, and for how long."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LedgerOptions:
    max_owed_tokens: int = 1 << 20  # predicted work, accepted and not done
    max_choices_on_board: int = 256  # of one model server
    num_active: int = 1  # model servers at work at a time; any others are kept warm
    keep_seconds: float = 300.0  # a finished answer, for whom comes back
    max_kept: int = 4096
