"""genserve batch: a file of prompts becomes a file of answers, with a bar."""

import argparse

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from deploy.cli.consoles import errors
from deploy.jobs import order
from deploy.jobs.carrying_out import carry_out
from deploy.jobs.meter import Figures, duration
from loaders.progress import OnProgress, Progress

COLUMNS = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    order.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    with Bar() as bar:
        return carry_out(order.order_of(arguments), bar)


class Bar:
    """Tells a terminal how it goes."""

    def __init__(self) -> None:
        self._bars = Bars(*COLUMNS, console=errors, disable=not errors.is_terminal)
        self._task = self._bars.add_task("", total=None, visible=False)

    def __enter__(self) -> "Bar":
        self._bars.start()
        return self

    def __exit__(self, *trouble: object) -> None:
        self._bars.stop()

    def say(self, sentence: str) -> None:
        errors.print(sentence, highlight=False, soft_wrap=True)

    def show(self, figures: Figures) -> None:
        left = "" if figures.seconds_left is None else f", {duration(figures.seconds_left)} left"
        failed = f"  {figures.num_failed:,} failed" if figures.num_failed else ""
        text = f"{figures.tokens_per_second:,.0f} tokens/s{left}{failed}"
        self._bars.update(
            self._task, completed=figures.num_done, total=figures.num_lines, description=text, visible=True
        )

    def load(self) -> OnProgress:
        def report(progress: Progress) -> None:
            total = progress.total or None
            self._bars.update(self._task, completed=progress.done, total=total, description=progress.stage)

        return report
