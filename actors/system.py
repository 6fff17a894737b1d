"""System: to start one, to find one, to end one. What `genserve.start` and `genserve.connect` are made of."""

import re
from pathlib import Path
from typing import Any

from actors import process
from actors.client import Client, find_client
from actors.exits import SHUTDOWN, Reason
from actors.model_loading import ModelChoice
from actors.node import here, join, whereis
from actors.refusals import Unavailable
from actors.system_config import ROOT, SystemConfig
from actors.tree import start_root, status, stop_root
from engine.engine import EngineOptions

__all__ = ["connect", "start", "status", "stay", "stop"]


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
    """Start a system around a model, or join the one that runs already, and give a client of it.

    `address` is a Ray to join ("auto" finds one); without it one is started here. `config` are fields of SystemConfig:
    `partitions`, `replicas`, `spares`, `level`, ... `wait_seconds` None does not wait for the weights.
    """
    choice = ModelChoice(str(source), options, tuple((adapters or {}).items()))
    state = Path(directory) if directory is not None else default_directory(str(source))
    return start_system(SystemConfig(choice, str(state), **config), address=address, wait_seconds=wait_seconds)


def start_system(config: SystemConfig, *, address: str | None = None, wait_seconds: float | None = 300.0) -> Client:
    """Start exactly this system."""
    if not is_connected():
        process.connect(address)
    start_root(config)
    client = Client(config.partitions)
    if wait_seconds is not None:
        client.wait_until_ready(wait_seconds)
    return client


def connect(address: str = "auto", tenant: str = "") -> Client:
    """A client of the system that runs; Unavailable if there is none."""
    if not is_connected():
        try:
            process.connect(address)
        except ConnectionError:
            raise Unavailable("no Ray is running here") from None
    return find_client(tenant=tenant)


def stop() -> bool:
    """End the system, in reverse order of its start; False if none was running. Ray itself stays."""
    return stop_root()


def stay(config: SystemConfig) -> Reason:
    """Wait for as long as the system is wanted, and bring its root back whenever it is killed. For the foreground."""
    while True:
        root = whereis(ROOT)
        if root is None:
            return SHUTDOWN
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


def default_directory(source: str) -> Path:
    """Where a model's journal is kept; a journal is of no use to another model."""
    return Path.home() / ".genserve" / "state" / re.sub(r"[^\w.-]+", "-", source).strip("-")
