"""Health: is it alive, can it serve, and what does it measure. Answers while the model is busy, loading or dead."""

import contextlib

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from deploy.http.document import NOT_READY
from deploy.http.dress import reply
from deploy.http.edge import Edge
from engine.refusal import Refusal


def health(edge: Edge) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/health")
    async def is_alive(http: HttpRequest) -> Response:
        """Whether this server answers at all. The one route that wants no key."""
        return reply(http.scope, {"status": "ok"})

    @router.get("/ready", responses={503: NOT_READY})
    async def is_ready(http: HttpRequest) -> Response:
        """Whether a request would be served now, and if not, why."""
        reason = await why_not()
        if reason is None:
            return reply(http.scope, {"ready": True, "reason": None})
        return reply(http.scope, {"ready": False, "reason": reason}, 503, {"retry-after": "1"})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Measurements, as Prometheus reads them."""
        card = None
        with contextlib.suppress(Refusal):
            card = await edge.backend.card()
        edge.meters.look_at_itself()
        text = edge.meters.text(await edge.backend.stats(), card, await why_not() is None)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def why_not() -> str | None:
        try:
            return await edge.backend.why_not_ready()
        except Refusal as refusal:
            return refusal.message

    return router
