"""Own Ray: how the one is that a system starts for itself: without what nobody reads, and with a nursery for its
processes. Of two cores, what Ray did for nobody took a sixteenth. On somebody's cluster nothing of this applies.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from actors import precedence
from actors.newborn import NURSERY, WORKER

HERE = Path(__file__).resolve().parent
SETTINGS = {
    # records of every task, and measurements of every process, for a dashboard that is not there
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_event_stats": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    # what is free on this machine, for placing work that takes nothing
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "1000",
    # a worker for each core, before anybody wants one
    "RAY_prestart_worker_first_driver": "0",
}
STAND_INS = {"dashboard_agent": "silent_agent.py", "runtime_env_agent": "sleeping_agent.py"}  # for agents of Ray's
NO_JOB = "ffffffff"  # a worker that belongs to no job yet takes the first that comes


@contextmanager
def lean(node: type[Any], services: Any) -> Iterator[None]:
    """For a Ray that is started within; `node` is Ray's class that starts what belongs to one, with `services`.

    Its processes give way to those that compute; a model server takes precedence again.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    agent = "_build_python_executable_command_memory_profileable"  # what begins the command of an agent
    with (
        precedence.given(),
        replaced(node, "start_log_monitor", _without_log_monitor),
        replaced(node, "start_monitor", _without_monitor),
        replaced(node, "start_api_server", _without_api_server),
        replaced(services, agent, partial(_with_stand_in, getattr(services, agent))),
        replaced(node, "start_raylet", _with_nursery(node.start_raylet, services)),
    ):
        yield


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def let_workers_import_us() -> None:
    root = str(HERE.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])


def _with_nursery(start_raylet: Callable[..., None], services: Any) -> Callable[..., None]:
    """A nursery beside the node's raylet; Ray ends both. Elsewhere than on Linux a fork is not safe."""

    def start_both(node: Any, *args: Any, **options: Any) -> None:
        directory = Path(node.get_session_dir_path()) / "genserve"
        directory.mkdir(mode=0o700, exist_ok=True)
        if not is_private(directory):  # who may speak to the nursery may run anything in our name
            return start_raylet(node, *args, **options)
        here = {NURSERY: str(directory / "nursery"), WORKER: node._ray_params.worker_path}
        node._ray_params.worker_path = str(HERE / "newborn.py")
        node._ray_params.env_vars = {**(node._ray_params.env_vars or {}), **here}
        start_raylet(node, *args, **options)
        start_nursery(node, services, here)

    return start_both if sys.platform == "linux" else start_raylet


def start_nursery(node: Any, services: Any, here: dict[str, str]) -> None:
    (raylet,) = node.all_processes["raylet"]
    # Ray's library reads both of these once, while it is imported.
    ours = {**here, "RAY_JOB_ID": NO_JOB, "RAY_RAYLET_PID": str(raylet.process.pid)}
    # -P: what lies where somebody starts a system is not to be imported in place of anything.
    command = [sys.executable, "-P", *services._site_flags(), "-m", "actors.nursery", here[NURSERY]]
    paths = node.get_log_file_names("nursery", unique=True, create_out=True, create_err=True)
    # Ray's servers have jemalloc, and its workers not: it gives back what a step will want again.
    with open(paths[0], "ab") as output, open(paths[1], "ab") as errors, replaced(services, "JEMALLOC_SO", ""):
        files = {"stdout_file": output, "stderr_file": errors}
        started = services.start_ray_process(
            command, "nursery", fate_share=node.kernel_fate_share, env_updates=ours, **files
        )
    node.all_processes["nursery"] = [started]


def is_private(directory: Path) -> bool:
    found = directory.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o077


def _with_stand_in(command: Callable[[str, str], list[str]], component: str, session: str) -> list[str]:
    """The rest of the command, Ray's own program first, is then said to ours."""
    ours = STAND_INS.get(component)
    return [*command(component, session), *([str(HERE / ours)] if ours else [])]


def _without_log_monitor(node: Any) -> None:
    """It copies what processes print to a program that does not listen."""


def _without_monitor(node: Any) -> None:
    """It asks for more machines."""


def _without_api_server(node: Any, **options: object) -> None:
    """It counts usage, where there is no dashboard."""
    node._webui_url = ""
