"""Dress: an answer as JSON or as msgpack, whichever its client asked for."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

from deploy.http.msgpack_body import encode_msgpack

JSON, MSGPACK = "application/json", "application/msgpack"
MSGPACK_NAMES = (MSGPACK, "application/x-msgpack", "application/vnd.msgpack")


def wants_msgpack(scope: Scope) -> bool:
    """Whether the client names msgpack, and JSON not."""
    accept = next((value for name, value in scope["headers"] if name == b"accept"), b"").decode("latin-1")
    kinds = [part.partition(";")[0].strip() for part in accept.split(",")]
    return JSON not in kinds and any(kind in MSGPACK_NAMES for kind in kinds)


def reply(scope: Scope, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in the dress that was asked for."""
    if wants_msgpack(scope):
        return Response(encode_msgpack(value), status, headers, MSGPACK)
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Response(content.encode("utf-8", "replace"), status, headers, JSON)
