"""Tally: counts requests by route and status."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deploy.http.meters import Meters


class Tally:
    """Middleware: the outermost, so that refusals count too."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self.app = app
        self.meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's own path, so that what clients make up does not become a label.
                route = getattr(scope.get("route"), "path", "none")
                self.meters.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted)
