"""Finding a running system: how many partitions it has, whoever of them lives."""

import pytest

from actors.client import find_client, num_partitions
from actors.inline import Inline
from actors.node import spawn
from actors.refusals import Unavailable
from actors.supervision import ChildSpec, Policy
from actors.supervisor import Supervisor, terminate_child
from actors.system_config import ROOT
from tests.servers import Echo


def test_a_partition_that_is_dead_just_now_is_counted() -> None:
    with Inline():
        specs = [ChildSpec(f"requests-{number}", (Echo,)) for number in range(3)]
        supervisor = spawn(Supervisor, Policy(), specs, name=f"{ROOT}.requests")
        terminate_child(supervisor, "requests-1")
        assert num_partitions() == 3


def test_where_no_part_of_a_system_lives_none_is_waited_for() -> None:
    with Inline(), pytest.raises(Unavailable, match="no system is running here"):
        find_client()
