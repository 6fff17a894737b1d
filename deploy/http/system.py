"""System: what the live page sees and does: what runs, the supervision tree; suspend, resume, kill the engine."""

import contextlib
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from actors.refusals import UnknownRequest
from actors.running import Running
from deploy.http.document import failures, may_take
from deploy.http.dress import reply
from deploy.http.edge import Edge, tenant_of
from deploy.http.errors import Forbidden
from deploy.http.history import History
from deploy.http.job import request_ids
from deploy.http.payload import Fields, body_of
from engine.refusal import Refusal


class NoFields(Fields):
    """Nothing is to be said with it: no body, or an object without fields."""


Nothing = Annotated[NoFields, Depends(body_of(NoFields, is_wanted=False))]


def system(edge: Edge, history: History) -> APIRouter:
    router = APIRouter(tags=["system"])

    @router.get("/v1/system")
    async def look(http: HttpRequest, after: str = Query("0", pattern="^[0-9]{1,12}$")) -> Response:
        """Everything that the live page shows; of the samples those behind number `after`."""
        tenant, backend = tenant_of(http), edge.backend
        card = None
        with contextlib.suppress(Refusal):
            card = await backend.card()
        is_operator = may_operate(edge, tenant)
        stats = await backend.stats()
        return reply(
            http.scope,
            {
                "object": "system",
                "model": asdict(card) if card is not None else None,
                "is_operator": is_operator,
                "not_ready": await backend.why_not_ready(),
                "stats": asdict(stats),
                "first_token_seconds": edge.meters.median_first_token(),
                "running": [shown(row, is_operator or row.tenant == tenant) for row in await backend.running()],
                "adapters": [asdict(adapter) for adapter in await backend.adapters()],
                "loadable": await backend.loadable() if is_operator else (),
                "tree": asdict(await backend.tree()),
                "samples": history.after(int(after)),
            },
        )

    @router.post("/v1/system/suspend", openapi_extra=may_take(NoFields), responses=failures(403))
    async def suspend(http: HttpRequest, nothing: Nothing) -> Response:
        """Let everything wait where it is."""
        edge.keys.check_operator(tenant_of(http))
        await edge.backend.suspend()
        return reply(http.scope, {"suspended": True})

    @router.post("/v1/system/resume", openapi_extra=may_take(NoFields), responses=failures(403))
    async def resume(http: HttpRequest, nothing: Nothing) -> Response:
        """Let everything go on."""
        edge.keys.check_operator(tenant_of(http))
        await edge.backend.resume()
        return reply(http.scope, {"suspended": False})

    @router.post("/v1/system/kill_engine", openapi_extra=may_take(NoFields), responses=failures(403))
    async def kill_engine(http: HttpRequest, nothing: Nothing) -> Response:
        """End the process that has the model, as a crash would. What was accepted goes on when the next one is up."""
        edge.keys.check_operator(tenant_of(http))
        await edge.backend.kill_engine()
        return reply(http.scope, {"killed": True})

    @router.delete("/v1/requests/{request_id}", responses=failures(404))
    async def cancel(http: HttpRequest, request_id: str) -> Response:
        """End a request. Ending it twice, or when it is done, changes nothing."""
        ids, tenant = request_ids(request_id), tenant_of(http)
        try:
            found = [await edge.backend.cancel(one, tenant) for one in ids]
        except UnknownRequest:
            found = []
        if not found:
            raise UnknownRequest(f"no request has the id {request_id[:60]!r}", "id")
        return reply(http.scope, {"id": request_id, "object": "request", "cancelled": True})

    return router


def may_operate(edge: Edge, tenant: str) -> bool:
    try:
        edge.keys.check_operator(tenant)
    except Forbidden:
        return False
    return True


def shown(row: Running, is_open: bool) -> dict[str, Any]:
    """Of other tenants' requests only that they are there."""
    return asdict(row) if is_open else asdict(row) | {"id": "", "tenant": "", "adapter": None}
