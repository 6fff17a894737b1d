"""What clients expect of a server, all of it in `CHECKS`. Starts no server."""

from benchmarks.checks import official, others, plain
from benchmarks.checks.table import CHECKS, Check, Target, status_of

__all__ = ["CHECKS", "Check", "Target", "official", "others", "plain", "status_of"]
