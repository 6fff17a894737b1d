"""App: the routes and the middlewares as one ASGI application, in the order of the checks."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp

from deploy.http.absent import nothing_at
from deploy.http.backend import Backend
from deploy.http.bodies import Bodies
from deploy.http.chat_fields import ChatFields
from deploy.http.completing import completing
from deploy.http.completion_fields import CompletionFields
from deploy.http.departure import Departed
from deploy.http.document import EVERYWHERE, describe
from deploy.http.dress import reply
from deploy.http.edge import Edge
from deploy.http.errors import MethodNotAllowed, Unexpected, error_response
from deploy.http.heads import Heads
from deploy.http.health import health
from deploy.http.history import History
from deploy.http.hosts import Hosts
from deploy.http.keys import NO_KEYS, KeyCheck, Keys
from deploy.http.models import LoadFields, UnloadFields, models
from deploy.http.page import page
from deploy.http.system import NoFields, system
from deploy.http.tally import Tally
from deploy.http.tokenizing import DetokenizeFields, TokenizeFields, tokenizing
from engine.refusal import BadRequest, Refusal
from loaders.tokenizer import Tokenizer

BODIES = (ChatFields, CompletionFields, DetokenizeFields, LoadFields, NoFields, TokenizeFields, UnloadFields)
CLIENT_GONE = 499  # nobody reads it


def build_app(
    backend: Backend,
    tokenizer: Tokenizer,
    keys: Keys = NO_KEYS,
    hosts: Iterable[str] = (),
    now: Callable[[], float] = time.time,
) -> ASGIApp:
    """The whole door over a backend. The backend is opened and closed with the app."""
    edge = Edge(backend, tokenizer, keys, now=now)
    history = History(backend, edge.meters, now)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await backend.open()
        sampling = asyncio.create_task(history.run())
        yield
        sampling.cancel()
        await backend.close()
        edge.encoders.shutdown(wait=False)

    api = FastAPI(
        title="genserve",
        description="OpenAI's interface to the models of this server, and some words beyond it.",
        lifespan=lifespan,
        openapi_url=None,  # which would be JSON for everybody
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        responses=EVERYWHERE,
        exception_handlers=HANDLERS,
        generate_unique_id_function=lambda route: route.name,
    )
    for router in (completing(edge), models(edge), tokenizing(edge), system(edge, history), health(edge), page()):
        api.include_router(router)

    @cache
    def described() -> dict[str, Any]:
        return describe(api, BODIES, wants_key=len(keys) > 0)

    @api.get("/openapi.json", include_in_schema=False)
    async def description(http: HttpRequest) -> Response:
        return reply(http.scope, described())

    return Heads(Tally(Hosts(KeyCheck(Bodies(api), keys), hosts), edge.meters))


async def refused(http: HttpRequest, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return error_response(refusal, http.scope)


async def not_routed(http: HttpRequest, trouble: Exception) -> Response:
    """No such route, or not by this method."""
    assert isinstance(trouble, HTTPException)
    path = http.url.path[:100]
    if trouble.status_code == 405:
        return error_response(MethodNotAllowed(f"{path} does not take {http.method}"), http.scope, trouble.headers)
    if trouble.status_code == 404:
        return error_response(nothing_at(http.url.path), http.scope)
    return error_response(BadRequest(str(trouble.detail)), http.scope)


async def malformed(http: HttpRequest, trouble: Exception) -> Response:
    """A parameter in the path or the query."""
    assert isinstance(trouble, RequestValidationError)
    error = trouble.errors()[0]
    param = str(error["loc"][-1])[:60]
    return error_response(BadRequest(f"{param}: {error['msg']}"[:200], param), http.scope)


async def departed(http: HttpRequest, trouble: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def unexpected(http: HttpRequest, trouble: Exception) -> Response:
    """A fault of ours. It goes on to the log; the client learns that it is not to blame."""
    return error_response(Unexpected("the server made a mistake; it has been written to its log"), http.scope)


HANDLERS: dict[Any, Any] = {
    Refusal: refused,
    HTTPException: not_routed,
    RequestValidationError: malformed,
    Departed: departed,
    Exception: unexpected,
}
