"""Own Ray: how the one is that a system starts for itself: without what nobody reads, and with a place ready for the
next process. Of two cores, what Ray did for nobody took a sixteenth. On somebody's cluster nothing of this applies.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

PRESTART = "RAY_enable_worker_prestart"
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
    # a place for the next process is made, and waits for as long as nobody dies
    PRESTART: "1",
    "RAY_idle_worker_killing_time_threshold_ms": str(7 * 86_400_000),
}


@contextmanager
def lean(node: type[Any]) -> Iterator[None]:
    """For a Ray that is started within; `node` is Ray's class that starts what belongs to one."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with patch.multiple(
        node,
        start_log_monitor=_without_log_monitor,
        start_monitor=_without_monitor,
        start_api_server=_without_api_server,
    ):
        yield


def makes_places() -> bool:
    """Whether the Ray that this process belongs to makes a place for the next one where a task waits."""
    return os.environ.get(PRESTART) == "1"


def let_workers_import_us() -> None:
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, paths)])


def _without_log_monitor(node: Any) -> None:
    """It copies what processes print to a program that does not listen."""


def _without_monitor(node: Any) -> None:
    """It asks for more machines."""


def _without_api_server(node: Any, **options: object) -> None:
    """It counts usage, where there is no dashboard."""
    node._webui_url = ""
