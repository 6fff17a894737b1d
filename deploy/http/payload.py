"""Payload: a body, JSON or msgpack -> the record of its fields, or the refusal that it deserves."""

import asyncio
from collections.abc import Awaitable, Callable
from email.message import Message
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from deploy.http.dress import JSON, MSGPACK, MSGPACK_NAMES
from deploy.http.errors import WrongMediaType
from deploy.http.json_body import decode_json
from deploy.http.msgpack_body import decode_msgpack
from engine.refusal import BadRequest, Unsupported

DECODERS: dict[str, Callable[[bytes], Any]] = {JSON: decode_json} | dict.fromkeys(MSGPACK_NAMES, decode_msgpack)
LARGE_BYTES = 64 << 10  # decoded beside the event loop


class Fields(BaseModel):
    """A body's fields: of exactly these names and types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


Body = TypeVar("Body", bound=Fields)


def body_of(kind: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """What FastAPI asks for a handler's argument: the body as a record of this kind."""

    async def read(request: Request) -> Body:
        decode = decoder_for(request.headers.get("content-type"))
        data = await request.body()
        if len(data) > LARGE_BYTES:
            return await asyncio.to_thread(lambda: fields_of(kind, decode(data)))
        return fields_of(kind, decode(data))

    return read


def decoder_for(content_type: str | None) -> Callable[[bytes], Any]:
    parsed = Message()
    parsed["content-type"] = content_type or ""
    kind, charset = parsed.get_content_type(), parsed.get_param("charset", "utf-8")
    if content_type is None or kind not in DECODERS or str(charset).lower() not in ("utf-8", "utf8"):
        shown = (content_type or "")[:60]
        raise WrongMediaType(f"a body must be {JSON} or {MSGPACK}; got {shown!r}", "content-type")
    return DECODERS[kind]


def fields_of(kind: type[Body], value: Any) -> Body:
    if not isinstance(value, dict):
        raise BadRequest("the body must be an object of fields")
    try:
        return kind.model_validate(value)
    except ValidationError as trouble:
        raise refusal_of(trouble, value) from None


def refusal_of(trouble: ValidationError, body: Any) -> BadRequest | Unsupported:
    """What is wrong, in one sentence. Of several things the deepest: all members of a union complain, one rightly."""
    located = [(path_of(error["loc"], body), error) for error in trouble.errors(include_url=False, include_input=False)]
    path, error = max(located, key=lambda pair: len(pair[0]))
    param = ".".join(str(part)[:60] for part in path) or None
    match error["type"]:
        case "extra_forbidden" | "none_required":
            return Unsupported(f"this server does not support the field {param}", param)
        case "missing":
            return BadRequest(f"the field {param} is wanted", param)
        case "value_error":
            return BadRequest(str(error["ctx"]["error"]), param)
    return BadRequest(f"{param}: {error['msg']}" if param else error["msg"], param)


def path_of(location: tuple[int | str, ...], body: Any) -> list[int | str]:
    """Where in the body it is; pydantic's names for a union's members are left out."""
    path: list[int | str] = []
    for number, part in enumerate(location):
        if (isinstance(body, dict) and part in body) or (isinstance(body, list) and isinstance(part, int)):
            body = body[part]  # type: ignore[index]
        elif number < len(location) - 1 or not isinstance(body, dict):
            continue
        path.append(part)
    return path
