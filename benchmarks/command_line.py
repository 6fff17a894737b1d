"""Command lines of benchmarks: numbers within their bounds, and a refusal as `genserve` says it, with exit code 2."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.refusal import Refusal


def at_least(low: float) -> Callable[[str], float]:
    """A type for argparse: finite numbers from `low` on, whole ones if it is whole itself."""

    def number(text: str) -> float:
        found = type(low)(text)
        if not low <= found < math.inf:
            raise argparse.ArgumentTypeError(f"{low} at least is wanted, and came {text}")
        return found

    return number


@contextmanager
def told_in_a_sentence() -> Iterator[None]:
    """Within, or within the function that it decorates, what is refused ends the program with a sentence."""
    try:
        yield
    except Refusal as refusal:
        print(refusal.message, file=sys.stderr)
        sys.exit(2)
