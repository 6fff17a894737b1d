"""PublicActor: a plain Ray actor under a name of its own, for programs that know only Ray. Ray never restarts it."""

from contextlib import suppress
from typing import Any

from actors import process
from actors.process import NAMESPACE

ray: Any = vars(process)["ray"]  # `actors/process.py` is the one file that imports it
PING_SECONDS = 2.0
START_SECONDS = 60.0


def publish(name: str, server: type, *args: object) -> Any:
    """Put an actor under this name; one that is there already and answers, stays."""
    if is_published(name):
        return ray.get_actor(name, namespace=NAMESPACE)
    withdraw(name)
    options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "num_cpus": 0, "lifetime": "detached"}
    actor: Any = ray.remote(server).options(name=name, namespace=NAMESPACE, **options).remote(*args)
    ray.get(actor.ping.remote(), timeout=START_SECONDS)
    return actor


def is_published(name: str) -> bool:
    """Whether an actor of this name is there and answers its `ping`."""
    try:
        return bool(ray.get(ray.get_actor(name, namespace=NAMESPACE).ping.remote(), timeout=PING_SECONDS))
    except (ValueError, ray.exceptions.RayActorError):
        return False
    except ray.exceptions.GetTimeoutError:
        return True  # slow is not dead


def withdraw(name: str, parting_seconds: float = 0.0) -> None:
    """End it; with some time for its `settle`, in which it gives the answers that it owes."""
    try:
        actor = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return  # it is not there
    if parting_seconds:
        with suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            ray.get(actor.settle.remote(), timeout=parting_seconds)
    ray.kill(actor)
