"""RootWatch: an eye on the root supervisor, which has nobody above it. Who needs it brings it back."""

import logging
import threading

from actors.envelope import Down
from actors.exits import is_abnormal
from actors.node import me, monitor, send, whereis
from actors.pid import Pid
from actors.system_config import ROOT, SystemConfig

log = logging.getLogger(__name__)


class RootWatch:
    """Owned by one process. Several may try at once: the first to start it wins, and the others find it there."""

    def __init__(self, config: SystemConfig, is_in_tree: bool) -> None:
        self.config = config
        self.is_in_tree = is_in_tree  # else there is no root to look for
        self.root: Pid | None = None
        self._is_starting = False

    def look(self) -> None:
        """Every now and then: find the root, and start it if it is not there. At an orderly end it goes last."""
        if not self.is_in_tree or self.root is not None or self._is_starting:
            return
        root = whereis(ROOT)
        if root is not None:
            self.found(root)
        else:
            self._start()

    def found(self, root: Pid | None) -> None:
        self._is_starting = False
        if root is not None and root != self.root:
            self.root = root
            monitor(root)

    def is_watched(self, pid: Pid) -> bool:
        return pid == self.root

    def down(self, down: Down) -> None:
        """It ended. If that was not meant, there will be another."""
        self.root = None
        if is_abnormal(down.reason):
            self._start()

    def _start(self) -> None:
        # on a thread, as starting it waits for all its children, of which our own process is one
        self._is_starting = True
        threading.Thread(target=_start_root, args=(self.config, me()), daemon=True).start()


def _start_root(config: SystemConfig, asker: Pid) -> None:
    from actors.tree import start_root

    try:
        send(asker, start_root(config))
    except Exception as trouble:  # Ray's own as well, while its store is away
        log.warning("%s cannot start the root: %r", asker, trouble)
        send(asker, None)  # to be looked for again
