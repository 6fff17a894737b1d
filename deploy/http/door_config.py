"""DoorConfig: where the HTTP server listens, and for whom. Every process of a system carries it, so no FastAPI here."""

import ipaddress
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actors.supervision import ChildSpec
from actors.system_config import SystemConfig
from deploy.http.keys import NO_KEYS, Keys
from engine.refusal import BadRequest

HOST, PORT = "127.0.0.1", 8000
PARTING_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class DoorConfig:
    """How the door is opened."""

    name: str  # the base model's, to clients
    host: str = HOST
    port: int = PORT
    keys: Keys = NO_KEYS
    hosts: tuple[str, ...] = ()  # further names under which clients reach it
    adapters: str | None = None  # the directory that adapters are loaded from


def door_spec(system: SystemConfig, config: DoorConfig) -> ChildSpec:
    """The child that goes among a system's `doors`."""
    check_exposure(config.host, config.keys)
    return ChildSpec("http", ("deploy.http.door:Door", system, config), shutdown=PARTING_SECONDS)


def model_name(source: str, place: Path) -> str:
    """What clients call a model: the last part of its name or path, and of its whole path where that is dots."""
    name = Path(source).name
    return name if name not in ("", "..") else place.resolve().name


def check_exposure(host: str, keys: Keys) -> None:
    """Who opens the door to others wants keys."""
    is_loopback = host == "localhost"
    with suppress(ValueError):
        is_loopback = is_loopback or ipaddress.ip_address(host).is_loopback
    if not is_loopback and not len(keys):
        raise BadRequest(f"listening on {host} lets others in: give keys (--keys FILE), or listen on {HOST}")
