"""Serve: an app on a socket, until told to stop. uvicorn stands here."""

import asyncio
import logging
import resource
from collections.abc import Callable, Iterable

import uvicorn
from starlette.types import ASGIApp

from deploy.http.app import build_app
from deploy.http.backend import Backend
from deploy.http.door_config import HOST, PORT, check_exposure
from deploy.http.framing import MAX_CONNECTIONS, StrictProtocol
from deploy.http.keys import NO_KEYS, Keys
from loaders.tokenizer import Tokenizer

KEEP_ALIVE_SECONDS = 30
PARTING_SECONDS = 5  # for answers under way when the server is told to stop
BACKLOG = 2048


def config_of(app: ASGIApp, host: str = HOST, port: int = PORT) -> uvicorn.Config:
    """How uvicorn runs the door."""
    logging.getLogger("uvicorn.error").addFilter(is_trouble)
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=StrictProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_level=logging.ERROR,  # what clients do wrong is told to them
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=PARTING_SECONDS,
    )


def serve(
    backend: Backend,
    tokenizer: Tokenizer,
    *,
    host: str = HOST,
    port: int = PORT,
    keys: Keys = NO_KEYS,
    hosts: Iterable[str] = (),
    started: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until a signal comes. `hosts` are further names under which clients reach this server.

    `started` is told the address when the socket is open; the model may still be loading then.
    """
    check_exposure(host, keys)
    allow_descriptors()
    server = Server(config_of(build_app(backend, tokenizer, keys, (host, *hosts)), host, port))
    server.started_at = started
    server.run()


class Server(uvicorn.Server):
    """uvicorn's, which says when it has begun and where."""

    started_at: Callable[[str], None] = staticmethod(lambda url: None)

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            address = self.servers[0].sockets[0].getsockname()
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            self.started_at(f"http://{host}:{address[1]}")


def is_trouble(record: logging.LogRecord) -> bool:
    """An answer that is cut off when the server is told to stop is none."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def allow_descriptors() -> None:
    """As many open connections as are let in; systems start with fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(2 * MAX_CONNECTIONS, hard) if hard != resource.RLIM_INFINITY else 2 * MAX_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
