"""genserve bench: a mixed load on this engine, and the same on mlx-lm in the same run, as a ratio."""

import argparse
import json
from collections.abc import Callable
from typing import Any, get_args

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from deploy.bench.measure import Timings, measure_engine, measure_reference
from deploy.bench.workload import Arrival, Range, make_workload
from deploy.cli.consoles import errors, output
from deploy.cli.progress import shown_progress
from engine.engine import Engine
from engine.kernels.choose import choose
from engine.kernels.expand import EXPAND_HELP, Expand
from engine.limits import MAX_SEED, check_integer, check_real
from engine.options import EngineOptions
from engine.refusal import Unsupported
from engine.weights import Model
from loaders.checkpoint import load_model
from loaders.made_up import made_up_adapter
from loaders.mlx_lm_model import mlx_lm_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt-tokens", default="16:128", metavar="LOW:HIGH")
    parser.add_argument("--output-tokens", default="16:64", metavar="LOW:HIGH")
    parser.add_argument("--adapters", type=int, default=4, help="made-up adapters that take turns")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, help="requests a second (default: all at once)")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, default=512, help="budget of a step")
    parser.add_argument("--sequences", type=int, default=64, help="how many run at once")
    parser.add_argument("--expand", choices=get_args(Expand), default="auto", help=EXPAND_HELP)
    parser.add_argument("--reference", type=int, default=8, help="requests for mlx-lm, which may be slow; 0 for none")
    parser.add_argument("--json", action="store_true", help="one object for programs")


def run(arguments: argparse.Namespace) -> int:
    for name in ("requests", "rank", "batch_tokens", "sequences"):
        check_integer(name, getattr(arguments, name), 1, 1_000_000)
    check_integer("adapters", arguments.adapters, 0, 1024)
    check_integer("reference", arguments.reference, 0, 1_000_000)
    check_integer("seed", arguments.seed, 0, MAX_SEED)
    check_real("temperature", arguments.temperature, 0.0, 100.0, True)
    if arguments.rate is not None:
        check_real("rate", arguments.rate, 0.0, 1e6, False)
    with shown_progress() as on_progress:
        model = load_model(arguments.model, on_progress=on_progress)
    names = tuple(f"adapter-{index}" for index in range(arguments.adapters))
    arrivals = make_workload(
        arguments.requests,
        model.config.vocab_size,
        Range.parse(arguments.prompt_tokens, "prompt-tokens"),
        Range.parse(arguments.output_tokens, "output-tokens"),
        names,
        arguments.rate,
        arguments.seed,
    )
    report = {"model": arguments.model, "genserve": ours(model, arrivals, names, arguments).summary()}
    if arguments.reference:
        report |= compare(model, arrivals[: arguments.reference], arguments)
    if arguments.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


def ours(model: Model, arrivals: list[Arrival], adapters: tuple[str, ...], arguments: argparse.Namespace) -> Timings:
    options = EngineOptions(
        max_batch_tokens=arguments.batch_tokens, max_sequences=arguments.sequences, expand=arguments.expand
    )
    engine = Engine(model, choose(model.config, model.weights, options.block_size, expand=options.expand), options)
    for index, name in enumerate(adapters):
        engine.attach(name, made_up_adapter(model.config, arguments.rank, index))
    with Bar("genserve", arrivals) as bar:
        return measure_engine(engine, arrivals, arguments.temperature, bar.advance)


def compare(model: Model, arrivals: list[Arrival], arguments: argparse.Namespace) -> dict[str, Any]:
    """A shorter load without adapters on both, in one run; mlx-lm knows one adapter at a time, and it is slow here."""
    try:
        reference = mlx_lm_model(model)
    except Unsupported as refusal:
        errors.print(f"no comparison: {refusal.message}", style="yellow")
        return {}
    plain = [Arrival(a.at_seconds, a.prompt, a.num_output, None, a.seed) for a in arrivals]
    mine = ours(model, plain, (), arguments).summary()
    with Bar("mlx-lm", plain) as bar:
        timings = measure_reference(reference, plain, arguments.temperature, arguments.sequences, bar.advance)
        theirs = timings.summary()
    ratio = mine["output_tokens_per_second"] / theirs["output_tokens_per_second"]
    return {"genserve, same load": mine, "mlx-lm": theirs, "ratio": ratio}


class Bar:
    """A progress bar that counts a load's tokens."""

    def __init__(self, title: str, arrivals: list[Arrival]) -> None:
        columns = (
            TextColumn(f"{title:>10}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} tokens"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal)
        self._task = self._progress.add_task(title, total=sum(arrival.num_output for arrival in arrivals))

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, count: int) -> None:
        self._progress.advance(self._task, count)


def show(report: dict[str, Any]) -> None:
    runs = {name: run for name, run in report.items() if isinstance(run, dict)}
    table = Table("", *runs, title=f"{report['model']}", title_justify="left")
    for row, value in ROWS.items():
        table.add_row(row, *(value(run) for run in runs.values()))
    output.print(table)
    if "ratio" in report:
        output.print(f"output tokens a second, against mlx-lm on the same load: {report['ratio']:.1f} times")


ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "requests": lambda run: f"{run['requests']}",
    "prompt tokens": lambda run: f"{run['prompt_tokens']}",
    "output tokens": lambda run: f"{run['output_tokens']}",
    "seconds": lambda run: f"{run['seconds']:.2f}",
    "output tokens/s": lambda run: f"{run['output_tokens_per_second']:.1f}",
    "all tokens/s": lambda run: f"{run['tokens_per_second']:.1f}",
    "first token, ms (p50, p95)": lambda run: "{p50:.0f}, {p95:.0f}".format(**run["first_token_ms"]),
    "between tokens, ms (p50, p95)": lambda run: (
        "{p50:.1f}, {p95:.1f}".format(**run["between_tokens_ms"]) if run["between_tokens_ms"] else "-"
    ),
    "rows a step, mean": lambda run: f"{run['mean_batch']:.1f}",
}
