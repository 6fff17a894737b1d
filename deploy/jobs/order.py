"""Order: what a batch was told on its command line: files, model, and the words for lines that leave them open."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.ledger_options import LedgerOptions
from actors.model_choice import ModelChoice
from deploy.cli.named_path import check_not_the_models, named_places
from deploy.jobs.book import Places
from engine.limits import check_integer, check_real
from engine.options import EngineOptions
from engine.refusal import BadRequest
from loaders.progress import OnProgress
from loaders.sources import locate

MODEL = "smollm2"
BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Order:
    source: Path
    places: Places
    model: str
    adapters: tuple[tuple[str, str], ...]
    defaults: Mapping[str, Any]
    batch_size: int
    is_connecting: bool  # to a system that runs
    is_inline: bool  # on an engine in this process
    address: str | None  # of a Ray cluster

    @property
    def max_in_flight(self) -> int:
        """As many again wait as are worked on, so that whenever one ends the next is there."""
        return 2 * self.batch_size

    @property
    def limits(self) -> LedgerOptions:
        return LedgerOptions(max_choices_on_board=max(256, self.max_in_flight))

    def choice(self, on_progress: OnProgress) -> ModelChoice:
        """The model, found and fetched if need be."""
        place = locate(self.model, on_progress).absolute()
        check_not_the_models((self.model, place.name), self.adapters)
        return ModelChoice(str(place), EngineOptions(max_sequences=self.batch_size), self.adapters)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="prompts: a JSON object a line, OpenAI's or plain")
    parser.add_argument("output", type=Path, help="answers, a line each; errors go to a file beside it")
    parser.add_argument("--model", help=f"a directory, a .gguf file, a hub id or a short name (default: {MODEL})")
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=PATH", help="may be given often")
    parser.add_argument("--max-tokens", type=int, help="for lines that do not say")
    parser.add_argument("--temperature", type=float, help="for lines that do not say")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=f"lines at a time (default: {BATCH_SIZE})")
    parser.add_argument("--connect", action="store_true", help="ask the system that runs, instead of one of its own")
    parser.add_argument("--inline", action="store_true", help="in this process alone: faster, and unsupervised")
    parser.add_argument("--address", help="the Ray cluster to run on; without it one is started here")


def order_of(arguments: argparse.Namespace) -> Order:
    check_integer("batch-size", arguments.batch_size, 1, 4096)
    if arguments.connect and (arguments.model is not None or arguments.adapter):
        raise BadRequest("with --connect the model and the adapters are those of the system that runs", "connect")
    if arguments.inline and (arguments.connect or arguments.address is not None):
        raise BadRequest("--inline asks no system, and --connect and --address name one", "inline")
    if not arguments.output.name:  # "." and "/"; what has a name is looked at when its book is opened
        raise BadRequest(f"{arguments.output} is a directory; a file is wanted", "output")
    defaults: dict[str, Any] = {}
    if arguments.max_tokens is not None:
        check_integer("max-tokens", arguments.max_tokens, 1, 2**31 - 1)
        defaults["max_tokens"] = arguments.max_tokens
    if arguments.temperature is not None:
        check_real("temperature", arguments.temperature, 0.0, 100.0, True)
        defaults["temperature"] = arguments.temperature
    return Order(
        arguments.input,
        Places(arguments.output),
        arguments.model or MODEL,
        named_places(arguments.adapter),
        defaults,
        arguments.batch_size,
        arguments.connect,
        arguments.inline,
        arguments.address,
    )


def settings_of(order: Order, choice: ModelChoice) -> str:
    """Everything beside the input that texts depend on."""
    return json.dumps({"model": choice.source, "adapters": choice.adapters, **order.defaults}, separators=(",", ":"))
