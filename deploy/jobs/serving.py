"""Serving: who answers a batch: a system of its own, which ends with it, one that runs already, or an engine here."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from actors import finding, process
from actors.client import Client, find_client
from actors.exits import CallFailed
from actors.ledger_options import LedgerOptions
from actors.model_choice import ModelChoice, function_at
from actors.model_loading import read_adapter
from actors.system import running_config, start_system, stop
from actors.system_config import SystemConfig
from deploy.jobs.answers import Answers, ClientAnswers
from deploy.jobs.inline_answers import InlineAnswers
from deploy.jobs.owner import Heartbeat, finds_its_system, owner_spec
from engine.adapter import Adapter
from engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Serving:
    """Who answers, with which model, and which adapters are attached to it, whenever that was."""

    answers: Answers
    choice: ModelChoice
    adapters: tuple[str, ...]


def serving_of(client: Client, choice: ModelChoice) -> Serving:
    return Serving(ClientAnswers(client), choice, client.stats()[0].adapters)


@contextmanager
def inline(choice: ModelChoice) -> Iterator[Serving]:
    """An engine on a thread of this process, which costs no other process anything, and ends with this one."""

    def make() -> tuple[Engine, dict[str, Adapter]]:
        engine: Engine = function_at(choice.make_engine)(choice)
        return engine, {name: read_adapter(path, engine.model) for name, path in choice.adapters}

    with closing(InlineAnswers(make, function_at(choice.make_tokenizer)(choice))) as answers:
        yield Serving(answers, choice, tuple(name for name, _ in choice.adapters))


@contextmanager
def own_system(choice: ModelChoice, batch: str, limits: LedgerOptions, address: str | None) -> Iterator[Serving]:
    """Start a system, or take over the one that an earlier start of this batch left behind. It ends with the block."""
    join(address)
    try:
        config = config_for(choice, batch, limits)
        try:
            with Heartbeat():
                yield serving_of(start_system(config), choice)
        finally:
            with suppress(CallFailed):  # where it cannot be reached its owner ends it, as when a batch is killed
                stop()
            rmtree(config.directory, ignore_errors=True)
    finally:
        process.disconnect()


@contextmanager
def running_system(address: str) -> Iterator[Serving]:
    """A client of the system that runs at `address`. It stays when the block ends."""
    join(address)
    try:
        client = find_client()
        try:
            yield serving_of(client, running_config().choice)
        finally:
            client.close()
    finally:
        process.disconnect()


def join(address: str | None) -> None:
    """Connect to a Ray, or start one."""
    on_terminate = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place
    if address is None:
        process.connect()
    else:
        finding.join(address)
    signal.signal(signal.SIGTERM, on_terminate)


def config_for(choice: ModelChoice, batch: str, limits: LedgerOptions) -> SystemConfig:
    """The system to start, or the one that is there and is ours."""
    if finds_its_system(batch):
        return running_config()
    directory = tempfile.mkdtemp(prefix="genserve-batch-")
    doors = (owner_spec(batch),)
    return SystemConfig(choice, directory, limits=limits, is_public=False, is_flat=True, doors=doors)


def names_of(choice: ModelChoice) -> tuple[str, ...]:
    """What requests may call a model: its place's name, and its place."""
    return Path(choice.source).name, choice.source
