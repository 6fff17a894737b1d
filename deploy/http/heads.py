"""Heads: a HEAD is answered as the GET is. The server beneath leaves the body out; balancers ask so for health."""

from starlette.types import ASGIApp, Receive, Scope, Send


class Heads:
    """Middleware: the outermost, so that all others see a GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["type"] == "http" and scope["method"] == "HEAD"
        await self.app({**scope, "method": "GET"} if is_head else scope, receive, send)
