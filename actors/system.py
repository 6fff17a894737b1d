"""System: to start one, to find one, to end one. What `genserve.start` and `genserve.connect` are made of."""

import os
import re
import time
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from actors import finding, process
from actors.checking import check
from actors.client import Client, find_client
from actors.exits import NOPROC, CallFailed, Reason
from actors.journal import check_free
from actors.model_choice import ModelChoice
from actors.node import here, join, lives, whereis
from actors.readiness import wait_until_ready
from actors.refusals import JournalTaken, Unavailable
from actors.system_config import ROOT, SystemConfig
from actors.tree import config_of, start_root, status, stop_root
from engine.options import EngineOptions
from engine.refusal import BadRequest
from loaders.sources import SHORT_NAMES, absolute

__all__ = ["connect", "running_config", "start", "status", "stay", "stop"]
ANSWER_SECONDS = 5.0
DYING_SECONDS = 3.0  # that the processes of a Ray may outlive it


def start(
    source: str | Path,
    *,
    adapters: dict[str, str] | None = None,
    directory: str | Path | None = None,
    address: str | None = None,
    options: EngineOptions = EngineOptions(),
    wait_seconds: float | None = 300.0,
    **config: Any,
) -> Client:
    """Start a system around a model, or join the one that runs already around the same, and give a client of it.

    `address` is a Ray to join ("auto" finds one); without it one is started here. `config` are fields of SystemConfig:
    `partitions`, `replicas`, `spares`, `level`, ... `wait_seconds` None does not wait for the weights.
    """
    voices = tuple((name, str(absolute(path))) for name, path in (adapters or {}).items())
    choice = ModelChoice(str(local_place(source) or source), options, voices)
    state = Path(directory) if directory is not None else default_directory(source)
    return start_system(
        SystemConfig(choice, str(absolute(state)), **config), address=address, wait_seconds=wait_seconds
    )


def start_system(config: SystemConfig, *, address: str | None = None, wait_seconds: float | None = 300.0) -> Client:
    """Start exactly this system."""
    if address is not None and not is_connected():
        finding.join(address, must_be_closed=True)
    is_joining = is_connected() and whereis(ROOT) is not None
    if is_joining:
        config = as_it_runs(config)
    else:
        check(config)
    if not is_connected():
        wait_for_journals(config)
        process.connect()
    start_root(replace(config, lives_before=lives(ROOT)))
    try:
        finding.be_found()
        client = Client(config.partitions)
        if wait_seconds is not None:
            wait_until_ready(client, config.choice, wait_seconds)
    except BaseException:
        if not is_joining:
            with suppress(CallFailed):
                stop()
        raise
    return client


def as_it_runs(wanted: SystemConfig) -> SystemConfig:
    """The system that runs, unless another one is wanted. A name and a path may mean the same model."""
    try:
        there = running_config()
    except Unavailable:  # it is busy: whoever waits for it will see
        return wanted
    sources = {there.choice.source, wanted.choice.source}
    if (len(sources) > 1 and len({Path(source).is_absolute() for source in sources}) == 1) or not set(
        wanted.choice.adapters
    ) <= set(there.choice.adapters):
        raise taken(f"{there.choice.source} and adapters {[name for name, _ in there.choice.adapters]}", "source")
    if wanted.directory != there.directory and Path(wanted.directory).parent != states():  # one that was named
        raise taken(f"its journals in {there.directory}", "directory")
    return there


def taken(what: str, param: str) -> BadRequest:
    return BadRequest(f"a system runs here already, with {what}: `connect` joins it, and `stop` ends it", param)


def wait_for_journals(config: SystemConfig) -> None:
    """JournalTaken if another system keeps its requests there, and is not just dying."""
    until = time.monotonic() + DYING_SECONDS
    for number in range(config.partitions):
        while True:
            try:
                check_free(config.journal_directory(number))
                break
            except JournalTaken:
                if time.monotonic() > until:
                    raise
            time.sleep(0.1)


def connect(address: str = "auto", tenant: str = "") -> Client:
    """A client of the system that runs; Unavailable if there is none."""
    if not is_connected():
        finding.join(address)
    return find_client(tenant=tenant)


def running_config() -> SystemConfig:
    """What the system that runs here was made from."""
    try:
        return config_of(ROOT, ANSWER_SECONDS)
    except CallFailed as trouble:
        raise Unavailable(f"the system does not answer: {trouble}") from None


def stop() -> bool:
    """End the system, in reverse order of its start; False if none was running. Ray itself stays."""
    finding.forget(finding.own_address())
    return stop_root()


def stay(config: SystemConfig) -> Reason:
    """Wait for as long as the system is wanted, and bring its root back whenever it is killed. For the foreground.

    Returns STOPPED after a stop, and another reason where the root gave up.
    """
    with suppress(Unavailable):
        config = running_config()  # as it was started, which need not have been by us
    while True:
        root = whereis(ROOT)
        if root is None:
            return NOPROC
        reason = join(root)
        if reason == "killed":
            start_root(config)
        elif reason is not None:
            return reason


def is_connected() -> bool:
    try:
        here()
    except RuntimeError:
        return False
    return True


def default_directory(source: str | Path) -> Path:
    """Where a model's journal is kept; a journal is of no use to another model, also not to one of the same name."""
    place = local_place(source)
    if place is None:
        return states() / with_dashes(str(source))
    place = place.resolve()
    return states() / f"{with_dashes(place.name)}-{blake2b(os.fsencode(place), digest_size=6).hexdigest()}"


def states() -> Path:
    """Where journals are kept for which nobody named a directory."""
    return Path.home() / ".genserve" / "state"


def local_place(source: str | Path) -> Path | None:
    """The absolute path of a model that is a file or a directory here; None for a name, which means the same anywhere.

    Links are not followed: what a .gguf file's link leads to need not be called so.
    """
    if isinstance(source, str) and source in SHORT_NAMES:
        return None
    place = absolute(source)
    return place if os.path.exists(place) else None


def with_dashes(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")
