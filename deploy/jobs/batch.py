"""`python -m deploy.jobs.batch prompts.jsonl out.jsonl --model ...`: a batch as a program of its own, and as a Ray job.

Exit codes: 0, every line has its answer. 1, some have an error instead. 2, it could not be done, and says why.
130 and 143, it was told to stop. After 2, 130 and 143 the same command goes on where it was.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from deploy.jobs.carrying_out import carry_out
from deploy.jobs.meter import Figures
from deploy.jobs.order import add_arguments, order_of
from engine.refusal import Refusal
from loaders.progress import OnProgress, ignore_progress

LOG_SECONDS = 10.0
log = logging.getLogger("genserve.batch")


class LogWriter:
    """Tells a log how it goes, now and then."""

    def __init__(self) -> None:
        self._next = time.monotonic() + LOG_SECONDS

    def say(self, sentence: str) -> None:
        log.info("%s", sentence)

    def show(self, figures: Figures) -> None:
        if time.monotonic() >= self._next or figures.num_done == figures.num_lines:
            self._next = time.monotonic() + LOG_SECONDS
            log.info("%s", figures)

    def load(self) -> OnProgress:
        return ignore_progress


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    log.setLevel(logging.INFO)
    parser = argparse.ArgumentParser(prog="python -m deploy.jobs.batch", description="Answer a file of prompts.")
    add_arguments(parser)
    given = parser.parse_args(arguments)
    given.output = given.output.absolute()  # a job's own directory is one that nobody knows
    try:
        return carry_out(order_of(given), LogWriter())
    except Refusal as refusal:
        log.error("%s", refusal.message)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
