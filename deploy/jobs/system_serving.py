"""A system of processes that answers a batch: its own, which ends with it, or one that runs already."""

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from shutil import rmtree

from actors import finding, precedence, process
from actors.client import Client, find_client
from actors.exits import CallFailed
from actors.ledger_options import LedgerOptions
from actors.model_choice import ModelChoice
from actors.system import running_config, start_system, stop
from actors.system_config import SystemConfig
from deploy.jobs.answers import ClientAnswers
from deploy.jobs.owner import Heartbeat, finds_its_system, owner_spec
from deploy.jobs.run import VOUCH_SECONDS
from deploy.jobs.serving import Serving


@contextmanager
def own_system(
    choice: ModelChoice, batch: str, limits: LedgerOptions, address: str | None, ray_died: Callable[[], None]
) -> Iterator[Serving]:
    """Start a system, or take over the one that an earlier start of this batch left behind. It ends with the block."""
    with precedence.given(), joined(address), process.vigil(ray_died):
        config = config_for(choice, batch, limits)
        try:
            with Heartbeat(), closing(start_system(config)) as client:
                yield serving_of(client, choice)
        finally:
            with suppress(CallFailed):  # where it cannot be reached its owner ends it, as when a batch is killed
                stop()
            rmtree(config.directory, ignore_errors=True)


@contextmanager
def running_system(address: str, ray_died: Callable[[], None]) -> Iterator[Serving]:
    """A client of the system that runs at `address`. It stays when the block ends."""
    with finding.watched(address, ray_died) as found, joined(found), closing(find_client()) as client:
        yield serving_of(client, running_config().choice)


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Connected to a Ray, or to one that is started for it."""
    on_terminate = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place
    if address is None:
        process.connect()
    else:
        finding.join(address)
    signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        process.disconnect()


def config_for(choice: ModelChoice, batch: str, limits: LedgerOptions) -> SystemConfig:
    """The system to start, or the one that is there and is ours."""
    if finds_its_system(batch):
        return running_config()
    directory = tempfile.mkdtemp(prefix="genserve-batch-")
    doors = (owner_spec(batch),)
    return SystemConfig(
        choice,
        directory,
        limits=limits,
        is_public=False,
        gather_seconds=VOUCH_SECONDS,  # no oftener than answers are written down
        is_flat=True,
        doors=doors,
    )


def serving_of(client: Client, choice: ModelChoice) -> Serving:
    return Serving(ClientAnswers(client), choice, client.stats()[0].adapters)
