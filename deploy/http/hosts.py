"""Hosts: who is spoken to, and from which page. Keeps other sites' pages, and names that rebind, away from the door."""

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.http.errors import Forbidden, Misdirected, error_response

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Hosts:
    """Middleware: the Host must be one of ours, and a browser must come from a page of the same origin."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self.app = app
        self.names = frozenset(name.lower() for name in (*LOOPBACK, *hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "").lower()
        if name_of(host) not in self.names:
            refusal = Misdirected(f"this server does not answer for the host {host[:100]!r}", "host")
            return await error_response(refusal, scope)(scope, receive, send)
        if not self._is_from_here(scope, headers, host):
            refusal_of_page = Forbidden("pages of other sites may not use this server", "origin")
            return await error_response(refusal_of_page, scope)(scope, receive, send)
        return await self.app(scope, receive, send)

    def _is_from_here(self, scope: Scope, headers: dict[bytes, str], host: str) -> bool:
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site", "none")
        if origin is not None and urlsplit_netloc(origin) != host:
            return False
        # Following a link to the page is harmless; a script or a form of another site is not.
        is_visit = scope["method"] == "GET" and headers.get(b"sec-fetch-mode") == "navigate"
        return site in ("same-origin", "none") or is_visit


def name_of(host: str) -> str:
    """A host without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isascii() and port.isdigit() else host


def urlsplit_netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
