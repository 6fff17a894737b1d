"""Carrying out: an order from the first look at its input to its last line, on the system that it asks for."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache, partial
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, Protocol

from actors.model_choice import ModelChoice, function_at
from deploy.jobs.asked import Asked, asked_plainly
from deploy.jobs.book import Book
from deploy.jobs.custom_ids import CustomIds
from deploy.jobs.input_file import InputFile, survey
from deploy.jobs.lines import Line, read_lines
from deploy.jobs.meter import Figures, Meter
from deploy.jobs.order import Order, settings_of
from deploy.jobs.raw_lines import raw_lines
from deploy.jobs.run import Run
from deploy.jobs.serving import Serving, names_of
from loaders.progress import OnProgress

if TYPE_CHECKING:
    from deploy.jobs.openai_lines import OpenAILines

NOT_DONE = 2
TERMINATED = 128 + signal.SIGTERM


class Onlooker(Protocol):
    """Who is told how it goes."""

    def say(self, sentence: str) -> None: ...
    def show(self, figures: Figures) -> None: ...
    def load(self) -> OnProgress: ...


def carry_out(order: Order, onlooker: Onlooker) -> int:
    """Do it, or go on with it; the exit code says how it went. SIGTERM ends it in good order, by SystemExit."""
    with terminated_by_exception():
        source = survey(order.source)
        if order.is_connecting:
            return on_running_system(order, source, onlooker)
        return on_own_system(order, source, onlooker)


def on_running_system(order: Order, source: InputFile, onlooker: Onlooker) -> int:
    from deploy.jobs.system_serving import running_system  # with Ray, as below

    with (
        running_system(order.address or "auto", partial(ray_died, onlooker)) as serving,
        closing(Book(order.places, source, settings_of(order, serving.choice))) as book,
    ):
        tell_beginning(book, onlooker)
        if not book.is_complete:
            ask_all(order, source, serving, book, onlooker)
        return tell_end(order, book, onlooker)


def on_own_system(order: Order, source: InputFile, onlooker: Onlooker) -> int:
    choice = order.choice(onlooker.load())
    with closing(Book(order.places, source, settings_of(order, choice))) as book:
        tell_beginning(book, onlooker)
        if not book.is_complete:
            onlooker.say(f"starting {choice.source}")
            with own_serving(order, choice, name_of(order, source, choice), onlooker) as serving:
                ask_all(order, source, serving, book, onlooker)
        return tell_end(order, book, onlooker)


def name_of(order: Order, source: InputFile, choice: ModelChoice) -> str:
    """What tells a batch from others: with the same name it goes on with the system that it had."""
    return f"{source.digest} {order.places.results.absolute()} {settings_of(order, choice)}"


def own_serving(order: Order, choice: ModelChoice, batch: str, onlooker: Onlooker) -> AbstractContextManager[Serving]:
    """Imported where it is wanted, for the one comes with MLX, and the other with Ray."""
    if order.is_inline:
        from deploy.jobs.inline_serving import inline

        return inline(choice)
    from deploy.jobs.system_serving import own_system

    return own_system(choice, batch, order.limits, cluster_of(order), partial(ray_died, onlooker))


def ray_died(onlooker: Onlooker) -> None:
    onlooker.say("the Ray that this batch is on has died; the same command goes on")
    os._exit(NOT_DONE)  # whoever waits for that Ray would hold this program back


def cluster_of(order: Order) -> str | None:
    """The Ray to join: the one that is named, or the one that this process is a job of."""
    return order.address or ("auto" if os.environ.get("RAY_ADDRESS") else None)


def ask_all(order: Order, source: InputFile, serving: Serving, book: Book, onlooker: Onlooker) -> None:
    """Every line that is not done."""
    ask = asking(order, serving)
    meter = Meter(source.num_lines, book, time.monotonic())
    with order.source.open("rb") as file, closing(CustomIds()) as ids:
        lines = read_lines(raw_lines(file), ids)

        def show() -> None:
            onlooker.show(meter.figures(time.monotonic()))

        run = Run(lines, ask, serving.answers, book, order.max_in_flight, show)
        try:
            if not asyncio.run(until_terminated(run)):
                raise SystemExit(TERMINATED)
        finally:
            if not book.is_complete:
                onlooker.say(f"{len(book.done):,} of {source.num_lines:,} lines are done; the same command goes on")


def asking(order: Order, serving: Serving) -> Callable[[Line], Asked]:
    """What lines come to, for this model and its adapters."""
    choice = serving.choice
    names = names_of(choice) if order.is_connecting else (order.model, *names_of(choice))

    @cache
    def openai() -> "OpenAILines":
        from deploy.jobs.openai_lines import OpenAILines  # with the door's words, of which plain lines have no need

        load_tokenizer = partial(function_at(choice.make_tokenizer), choice)
        return OpenAILines(load_tokenizer, names, serving.adapters, time.time)

    def ask(line: Line) -> Asked:
        return asked_plainly(line, order.defaults) if line.url is None else openai().asked(line, order.defaults)

    return ask


async def until_terminated(run: Run) -> bool:
    """Run on this loop; False if SIGTERM came first. What is done is vouched for either way."""
    loop, running = asyncio.get_running_loop(), asyncio.ensure_future(run.run())
    loop.add_signal_handler(signal.SIGTERM, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        this = asyncio.current_task()
        if this is not None and this.cancelling():  # Ctrl-C, which asyncio turns into its exception
            raise
        return False
    return True


@contextmanager
def terminated_by_exception() -> Iterator[None]:
    """While nothing else listens, SIGTERM is a SystemExit, so that what was started is ended."""
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def tell_beginning(book: Book, onlooker: Onlooker) -> None:
    if book.warning is not None:
        onlooker.say(book.warning)
    if len(book.done) and not book.is_complete:
        onlooker.say(f"going on behind {len(book.done):,} lines that are done")


def tell_end(order: Order, book: Book, onlooker: Onlooker) -> int:
    tally = book.tally
    errors = f"; {tally.failed:,} failed, see {order.places.errors}" if tally.failed else ""
    onlooker.say(f"{tally.answered:,} lines answered in {order.places.results}{errors}")
    return 1 if tally.failed else 0
