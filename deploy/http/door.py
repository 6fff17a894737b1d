"""Door: the HTTP server as a process of the supervision tree. Owns a socket and a thread; holds no request.

Streams end with it, the requests behind them do not: a client that has an Idempotency-Key comes back to the next one.
"""

import os
import threading
from pathlib import Path

from actors.genserver import Continue, GenServer, NoReply, Stop
from actors.model_choice import function_at
from actors.node import me, send
from actors.system_config import SystemConfig
from deploy.http.actor_backend import ActorBackend
from deploy.http.adapter_folder import AdapterFolder
from deploy.http.app import build_app
from deploy.http.door_config import PARTING_SECONDS, DoorConfig
from deploy.http.serve import Server, allow_descriptors, config_of


class Door(GenServer):
    trap_exit = True

    def init(self, system: SystemConfig, config: DoorConfig) -> Continue:
        self.system = system
        self.config = config
        self.server: Server | None = None  # until it is open
        return Continue("open")

    def handle_continue(self, value: object) -> NoReply:
        config = self.config
        tokenizer = function_at(self.system.choice.make_tokenizer)(self.system.choice)
        folder = None if config.adapters is None else AdapterFolder(Path(config.adapters))
        backend = ActorBackend(self.system, config.name, tokenizer, folder)
        app = build_app(backend, tokenizer, config.keys, (config.host, *config.hosts))
        allow_descriptors()
        self.server = Server(config_of(app, config.host, config.port))
        self.thread = threading.Thread(target=self.serve, args=(self.server, me()), name="http", daemon=True)
        self.thread.start()
        return NoReply()

    def serve(self, server: Server, myself: object) -> None:
        try:
            server.run()
        except SystemExit:  # uvicorn's way of saying that the socket is taken
            pass
        finally:
            send(myself, "closed")  # type: ignore[arg-type]

    def handle_info(self, message: object) -> Stop:
        return Stop(("door_closed",))

    def terminate(self, reason: object) -> None:
        if self.server is not None:
            self.server.should_exit = True
            self.thread.join(PARTING_SECONDS - 1)

    def format_state(self) -> object:
        config = self.config
        return {"host": config.host, "port": config.port, "keys": len(config.keys), "process": os.getpid()}
