"""Fleet: the model servers that one request server knows, and what becomes of its requests when one of them goes."""

from pathlib import Path

from actors.envelope import Down
from actors.exits import is_abnormal
from actors.ledger import Ledger
from actors.messages import Forgive, Hello, ModelUp
from actors.node import cast, is_alive, me, monitor, now, whereis
from actors.outbox import Outbox
from actors.pid import Pid
from actors.progress import NOBODY, glance, progress_path
from actors.system_config import SystemConfig


class Fleet:
    """Owned by one request server."""

    def __init__(self, config: SystemConfig, ledger: Ledger, outbox: Outbox) -> None:
        self.config = config
        self.ledger = ledger
        self.outbox = outbox
        self.models: dict[Pid, ModelUp] = {}
        self.capacity: ModelUp | None = None  # what the last one said it can take
        self._watched: set[Pid] = set()

    @property
    def adapters(self) -> tuple[str, ...]:
        return () if self.capacity is None else self.capacity.adapters

    def settle(self) -> None:
        """Whom the journal says to be on board of a model server is sent again; if it died meanwhile, that counts."""
        for epoch in list(self.ledger.boards):
            if is_alive(Pid.parse(epoch)):
                self.outbox.record(self.ledger.release(epoch, now()))
            else:
                self.outbox.record(self.ledger.model_down(epoch, self._alone_in(epoch), now()))

    def greet(self) -> None:
        """Those that are ready will say so."""
        for name in self.config.model_names:
            model = whereis(name)
            if model is not None:
                cast(model, Hello(me()))

    def meet(self, up: ModelUp) -> None:
        self.models[up.model] = self.capacity = up
        if up.model not in self._watched:
            self._watched.add(up.model)
            monitor(up.model)
        self.ledger.model_up(str(up.model))

    def down(self, down: Down) -> None:
        """Send again what it had. The ledger says whose doing it was; if a request's, the supervisor is told."""
        epoch = str(down.pid)
        self.models.pop(down.pid, None)
        self._watched.discard(down.pid)
        if not is_abnormal(down.reason):
            self.outbox.record(self.ledger.release(epoch, now()))
            self.ledger.model_gone(epoch)
            return
        board = self.ledger.boards.get(epoch)
        entries = [self.ledger.entries[name] for name in (board.ids if board else ())]
        alone = self._alone_in(epoch)
        self.outbox.record(self.ledger.model_down(epoch, alone, now()))
        if alone is not None or any(entry.is_suspect for entry in entries):
            cast(self.config.models_supervisor, Forgive(down.pid))
        self.outbox.touched |= {entry.id for entry in entries if entry.is_finished}

    def _alone_in(self, epoch: str) -> str | None:
        """Who ran alone in a model server that died; "" if it was another partition's request."""
        seen = glance(progress_path(Path(self.config.directory), epoch))
        if seen is None or seen.alone == NOBODY:
            return None
        board = self.ledger.boards.get(epoch)
        return next((name for name in (board.ids if board else ()) if seen.runs_alone(name)), "")
