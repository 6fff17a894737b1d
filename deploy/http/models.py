"""Models: what a request may name: the base model and every adapter, each a model to those who ask."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from deploy.http.adapter_folder import check_name
from deploy.http.backend import AdapterCard, ModelCard
from deploy.http.client_words import named
from deploy.http.document import failures, takes
from deploy.http.dress import reply
from deploy.http.edge import Edge, tenant_of
from deploy.http.errors import ModelNotFound
from deploy.http.payload import Fields, body_of
from engine.refusal import BadRequest

Name = Annotated[str, Field(min_length=1, max_length=64)]


class LoadFields(Fields):
    """An adapter to be loaded. `lora_path` is an entry of the server's directory of adapters, by default the name."""

    lora_name: Name
    lora_path: Name | None = None
    load_inplace: bool | None = None  # taken: a name that is loaded is replaced in any case


class UnloadFields(Fields):
    """An adapter to be forgotten."""

    lora_name: Name


def models(edge: Edge) -> APIRouter:
    router = APIRouter(tags=["models"])
    began = int(edge.now())

    @router.get("/v1/models")
    async def list_models(http: HttpRequest) -> Response:
        """The base model and the adapters."""
        return reply(http.scope, {"object": "list", "data": await known()})

    @router.get("/v1/models/{model:path}", responses=failures(404))
    async def retrieve_model(http: HttpRequest, model: str) -> Response:
        """One of them."""
        for entry in await known():
            if entry["id"] == model:
                return reply(http.scope, entry)
        raise ModelNotFound(f"the model {model[:64]!r} does not exist", "model")

    @router.post("/v1/load_lora_adapter", openapi_extra=takes(LoadFields), responses=failures(404, 429))
    async def load_lora_adapter(
        http: HttpRequest, fields: Annotated[LoadFields, Depends(body_of(LoadFields))]
    ) -> Response:
        """Load an adapter, or a newer version of one; what runs with the old one keeps it to its end."""
        edge.keys.check_operator(tenant_of(http))
        check_name(fields.lora_name, "lora_name")
        check_name(fields.lora_path or fields.lora_name, "lora_path")
        card = await edge.backend.card()
        if fields.lora_name == card.name:
            raise BadRequest(f"{card.name!r} is the base model's name", "lora_name")
        source = "lora_name" if fields.lora_path is None else "lora_path"
        with named(adapter="lora_name", lora_path=source):
            adapter = await edge.backend.load_adapter(fields.lora_name, fields.lora_path or fields.lora_name)
        return reply(http.scope, adapter_entry(adapter, card))

    @router.post("/v1/unload_lora_adapter", openapi_extra=takes(UnloadFields), responses=failures(404))
    async def unload_lora_adapter(
        http: HttpRequest, fields: Annotated[UnloadFields, Depends(body_of(UnloadFields))]
    ) -> Response:
        """Forget an adapter; what runs with it keeps it to its end."""
        edge.keys.check_operator(tenant_of(http))
        check_name(fields.lora_name, "lora_name")
        with named(adapter="lora_name"):
            await edge.backend.unload_adapter(fields.lora_name)
        return reply(http.scope, {"id": fields.lora_name, "object": "model", "deleted": True})

    async def known() -> list[dict[str, Any]]:
        card = await edge.backend.card()
        return [base_entry(card, began), *(adapter_entry(known, card) for known in await edge.backend.adapters())]

    return router


def base_entry(card: ModelCard, began: int) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": began,
        "owned_by": "genserve",
        "root": card.name,
        "parent": None,
        "max_model_len": card.capacity.max_context,
    }


def adapter_entry(adapter: AdapterCard, card: ModelCard) -> dict[str, Any]:
    return {
        "id": adapter.name,
        "object": "model",
        "created": int(adapter.loaded_at),
        "owned_by": "genserve",
        "root": adapter.name,
        "parent": card.name,
        "max_model_len": card.capacity.max_context,
        "version": adapter.version,
        "rank": adapter.rank,
    }
