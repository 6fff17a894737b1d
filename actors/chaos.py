"""Chaos: kill a part of the running system, as the world would, to see that nobody notices."""

import os
import signal
from typing import Any, Literal

from actors import process
from actors.node import living, whereis
from actors.pid import Pid
from actors.refusals import Unavailable
from actors.system_config import ROOT

Part = Literal["model", "request", "supervisor"]
PLACES: dict[Part, tuple[str, ...]] = {
    "model": (f"{ROOT}.models.",),
    "request": (f"{ROOT}.requests.",),
    "supervisor": (ROOT, f"{ROOT}.models", f"{ROOT}.requests"),
}
state: Any = vars(process)["state"]  # Ray's own, as `actors/process.py` has it


def kill(part: Part, number: int = 0) -> Pid:
    """SIGKILL one of the processes that play this part; who it was. Raises Unavailable if there is none."""
    candidates = victims(part)
    if not candidates:
        raise Unavailable(f"no {part} runs here")
    pid, process_id = candidates[number % len(candidates)]
    os.kill(process_id, signal.SIGKILL)
    return pid


def parts(part: Part) -> list[Pid]:
    return [pid for pid, _ in victims(part)]


def victims(part: Part) -> list[tuple[Pid, int]]:
    """Who plays this part and has a process, with its number."""
    if part == "supervisor":
        found = [pid for name in PLACES[part] if (pid := whereis(name)) is not None]
    else:
        found = living(PLACES[part][0])
    return [(pid, process_id) for pid in found if (process_id := process_id_of(pid)) is not None]


def process_id_of(pid: Pid) -> int | None:
    """The operating system's number of a process on this machine; None before it has one."""
    try:
        actor = process.ray.get_actor(str(pid), namespace=process.NAMESPACE)  # type: ignore[attr-defined]
    except ValueError:
        return None  # it has just died
    place = state.actors(actor._actor_id.hex())
    return (place["Pid"] if place else 0) or None  # never 0, which to `kill` is its caller's whole group
