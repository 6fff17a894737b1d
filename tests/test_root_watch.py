"""actors/root_watch.py: whoever needs the root brings it back, however its start fails."""

import threading
from pathlib import Path

import pytest

from actors import tree
from actors.genserver import GenServer, NoReply
from actors.inline import Inline
from actors.node import cast, spawn
from actors.pid import Pid
from actors.root_watch import RootWatch
from actors.system_config import SystemConfig
from tests.serving import tiny_system


class Needy(GenServer):
    def init(self, config: SystemConfig) -> None:
        self.root = RootWatch(config, is_in_tree=True)

    def handle_cast(self, message: object) -> NoReply:
        self.root.look()
        return NoReply()

    def handle_info(self, message: object) -> NoReply:
        assert message is None or isinstance(message, Pid)
        self.root.found(message)
        return NoReply()


def test_a_start_that_fails_of_whatever_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_failed = threading.Semaphore(0)

    def start_root(config: SystemConfig) -> Pid:
        has_failed.release()
        raise RuntimeError("the control store does not answer")

    monkeypatch.setattr(tree, "start_root", start_root)
    with Inline() as node:
        needy = spawn(Needy, tiny_system(tmp_path))
        for _ in range(3):
            cast(needy, "look")
            node.run()
            assert has_failed.acquire(timeout=10)
            for thread in threading.enumerate():
                if thread.name.endswith("(_start_root)"):
                    thread.join(10)
            node.run()
