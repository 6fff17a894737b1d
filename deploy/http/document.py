"""Document: what the OpenAPI description says beyond what FastAPI finds out by itself. Decides nothing."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from deploy.http.dress import JSON, MSGPACK
from deploy.http.errors import INTERNAL, KINDS, TooLarge
from deploy.http.keys import OPEN_PATHS
from deploy.http.payload import Fields

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ERROR_REF = {"$ref": "#/components/schemas/Error"}


def said(status: int) -> str:
    """The codes that come with a status; of 431, which has none of its own, that of a body which is too large."""
    kinds = {**KINDS, INTERNAL.type: INTERNAL}
    codes = {kind.code or code for code, kind in kinds.items() if kind.status == status}
    return ", ".join(sorted(codes)) or TooLarge.code


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer instead, in OpenAI's shape."""
    content = {JSON: {"schema": ERROR_REF}}
    return {status: {"description": said(status), "content": content} for status in statuses}


EVERYWHERE = failures(400, 401, 403, 408, 413, 415, 421, 431, 500, 503)
ANSWERS = failures(404, 409, 416, 429) | {
    200: {
        "description": "The answer; a stream of chunks if `stream` is set",
        "content": {JSON: {"schema": {"type": "object"}}, "text/event-stream": {}},
    }
}
NOT_READY = {
    "description": "Not now, for the reason that is given",
    "content": {
        JSON: {
            "schema": {
                "anyOf": [
                    {
                        "type": "object",
                        "required": ["ready", "reason"],
                        "properties": {"ready": {"const": False}, "reason": {"type": "string"}},
                    },
                    ERROR_REF,  # not even this can be told
                ]
            }
        }
    },
}


def takes(kind: type[Fields]) -> dict[str, Any]:
    """A body of this kind, in either dress."""
    schema = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
    return {"requestBody": {"required": True, "content": {JSON: schema, MSGPACK: schema}}}


def may_take(kind: type[Fields]) -> dict[str, Any]:
    """Such a body, or none."""
    return {"requestBody": takes(kind)["requestBody"] | {"required": False}}


def describe(app: FastAPI, kinds: tuple[type[Fields], ...], *, wants_key: bool) -> dict[str, Any]:
    """The whole document."""
    document = get_openapi(title="genserve", version=app.version, routes=app.routes, description=app.description)
    schemas: dict[str, Any] = {"Error": ERROR_SCHEMA}
    for kind in kinds:
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema
    components = document.setdefault("components", {})
    components["schemas"] = schemas
    if wants_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if wants_key and path in OPEN_PATHS:
                operation["security"] = []
            operation["responses"].pop("422", None)  # answered as 400
            for answer in operation["responses"].values():
                if JSON in (content := answer.get("content", {})):
                    content[MSGPACK] = content[JSON]
    return document
