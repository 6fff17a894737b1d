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
    candidates = parts(part)
    if not candidates:
        raise Unavailable(f"no {part} runs here")
    pid = candidates[number % len(candidates)]
    os.kill(process_id_of(pid), signal.SIGKILL)
    return pid


def parts(part: Part) -> list[Pid]:
    if part == "supervisor":
        return [pid for name in PLACES[part] if (pid := whereis(name)) is not None]
    return living(PLACES[part][0])


def process_id_of(pid: Pid) -> int:
    """The operating system's number of a process on this machine."""
    actor = process.ray.get_actor(str(pid), namespace=process.NAMESPACE)  # type: ignore[attr-defined]
    place = state.actors(actor._actor_id.hex())
    number: int = place["Pid"]
    return number
