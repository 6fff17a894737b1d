"""Own Ray: how the one is that a system starts for itself: on loopback, without what it does not need, with a reserve.

Of two cores, what Ray did for nobody took a sixteenth. On somebody's cluster only `stay_on_loopback` applies.
"""

import os
from pathlib import Path

import ray
from ray._private import ray_constants
from ray._private.node import Node

LOOPBACK = ("127.", "localhost:", "[::1]:")

MARK = "GENSERVE_HAS_A_RAY_OF_ITS_OWN"
SETTINGS = {
    MARK: "1",
    # records of every task, and measurements of every process, for a dashboard that is not there
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_event_stats": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    # what is free on this machine, for placing work that takes nothing
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "1000",
    # a reserve is made, and waits for as long as nobody dies
    "RAY_enable_worker_prestart": "1",
    "RAY_idle_worker_killing_time_threshold_ms": str(7 * 86_400_000),
}


def stay_on_loopback() -> None:
    """Ray takes an outside address for itself even where it is given an inside one, unless told it is on a laptop."""
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def let_workers_import_us() -> None:
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])


def make_lean() -> None:
    """For the Ray that is started next by this program."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for name, substitute in SUBSTITUTES.items():
        setattr(Node, name, substitute)


def make_reserve() -> None:
    """Have a Python waiting that nobody has used: the next actor then begins at once, and not in a second.

    Ray starts one ahead when a task waits behind another. Those that ran a task are of no use to an actor, and go.
    """
    if MARK in os.environ:
        for _ in range(2):
            _nothing.remote()


@ray.remote(num_cpus=0, max_calls=1, max_retries=0)
def _nothing() -> None: ...


def _without_log_monitor(node: Node) -> None:
    """It copies what processes print to a program that does not listen."""


def _without_monitor(node: Node) -> None:
    """It asks for more machines."""


def _without_api_server(node: Node, **options: object) -> None:
    """It counts usage, where there is no dashboard."""
    node._webui_url = ""


SUBSTITUTES = {
    "start_log_monitor": _without_log_monitor,
    "start_monitor": _without_monitor,
    "start_api_server": _without_api_server,
}
