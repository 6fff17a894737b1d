"""What several test files share and what is slow to make, and which files run after which, and beside which."""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from loaders.progress import ignore_progress
from loaders.sources import locate
from tests.ray_cluster import Cluster, started_cluster

settings.register_profile("genserve", deadline=None)  # a busy machine is not a failure
settings.load_profile("genserve")

# Some environments forbid bytecode files. A hundred processes start here, and each would compile the same files anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The first looks at all Rays of this machine and wants to find its own alone; then come those that share the Ray of
# their process, and those that share a cluster. Where there are several workers each of the two lines has its own.
ON_OWN_RAY = ("test_serve_system", "test_process", "test_crash", "test_http_actors")
ON_A_CLUSTER = ("test_examples", "test_batch_on_ray", "test_serve_on_a_cluster")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits a lot begins first; the second line does when the first look has long been taken."""
    files = list(dict.fromkeys(item.path.stem for item in items))
    others = [file for file in files if file not in ON_OWN_RAY + ON_A_CLUSTER]
    third = len(others) // 3
    order = [*ON_OWN_RAY, *others[:third], *ON_A_CLUSTER, *others[third:]]
    items.sort(key=lambda item: order.index(item.path.stem))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where there are several workers: a file at a time, but for the two lines."""
    from xdist.scheduler import LoadFileScheduling

    class InLines(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            name = Path(file).stem
            return "own Ray" if name in ON_OWN_RAY else "cluster" if name in ON_A_CLUSTER else file

    return InLines(config, log)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's GGUF file."""
    return locate("smollm2", ignore_progress)


@pytest.fixture(scope="session")
def ray_of_this_process() -> Iterator[None]:
    from actors import process  # Ray takes most of a second to import, and most tests need none
    from actors.node import enter, here, leave

    process.connect(num_cpus=2)
    node = here()
    leave(node)
    yield
    enter(node)
    process.disconnect()


@pytest.fixture(scope="module")
def ray(ray_of_this_process: None) -> Iterator[None]:
    """A node to work on. Other files do not see it: most tests want none."""
    from actors import process
    from actors.node import here, leave

    process.connect()
    yield
    leave(here())


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """As an administrator starts it; with a job server, if that is installed."""
    with started_cluster(has_jobs=find_spec("aiohttp_cors") is not None) as started:
        yield started
