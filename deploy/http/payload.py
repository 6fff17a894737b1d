"""Payload: a body, JSON or msgpack -> the record of its fields, or the refusal that it deserves."""

import asyncio
from collections.abc import Awaitable, Callable
from email.message import Message
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from deploy.http.complaints import refusal_of
from deploy.http.dress import JSON, MSGPACK, MSGPACK_NAMES
from deploy.http.errors import WrongMediaType
from deploy.http.json_body import decode_json
from deploy.http.msgpack_body import decode_msgpack
from engine.refusal import BadRequest

DECODERS: dict[str, Callable[[bytes], Any]] = {JSON: decode_json} | dict.fromkeys(MSGPACK_NAMES, decode_msgpack)
LARGE_BYTES = 64 << 10  # decoded beside the event loop


class Fields(BaseModel):
    """A body's fields: of exactly these names and types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


Body = TypeVar("Body", bound=Fields)


def body_of(kind: type[Body], *, is_wanted: bool = True) -> Callable[[Request], Awaitable[Body]]:
    """What FastAPI asks for a handler's argument: the body as a record of this kind; if none is wanted, of none too."""

    async def read(request: Request) -> Body:
        if not is_wanted and not await request.body():
            return kind()
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
