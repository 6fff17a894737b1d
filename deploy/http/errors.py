"""Errors: every refusal as an HTTP answer in OpenAI's shape. The one table of codes and statuses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Scope

from deploy.http.dress import reply
from engine.refusal import Refusal

MAX_MESSAGE = 400


class HttpRefusal(Refusal):
    """Refused at the door, before anything behind it was asked."""


class Unauthorized(HttpRefusal):
    code = "invalid_api_key"


class Forbidden(HttpRefusal):
    code = "forbidden"


class Misdirected(HttpRefusal):
    code = "unknown_host"


class NotFound(HttpRefusal):
    code = "not_found"


class MethodNotAllowed(HttpRefusal):
    code = "method_not_allowed"


class TooSlow(HttpRefusal):
    code = "request_timeout"


class TooLarge(HttpRefusal):
    code = "request_too_large"


class WrongMediaType(HttpRefusal):
    code = "unsupported_media_type"


class ModelNotFound(HttpRefusal):
    code = "model_not_found"


class Unexpected(HttpRefusal):
    code = "internal_error"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a code is answered."""

    status: int
    type: str = "invalid_request_error"
    code: str | None = None  # where OpenAI has another word for it


INVALID = Kind(400)
KINDS: Mapping[str, Kind] = {
    "bad_request": INVALID,
    "unsupported": INVALID,
    "broken_file": INVALID,
    "context_length_exceeded": INVALID,
    "invalid_api_key": Kind(401, "authentication_error"),
    "forbidden": Kind(403, "permission_error"),
    "not_found": Kind(404),
    "unknown_model": Kind(404, code="model_not_found"),
    "unknown_adapter": Kind(404, code="model_not_found"),
    "model_not_found": Kind(404),
    "unknown_request": Kind(404),
    "method_not_allowed": Kind(405),
    "request_timeout": Kind(408, "timeout_error"),
    "deadline_passed": Kind(408, "timeout_error"),
    "idempotency_conflict": Kind(409, "conflict_error"),
    "request_cancelled": Kind(409, "conflict_error"),
    "request_too_large": Kind(413),
    "unsupported_media_type": Kind(415),
    "out_of_range": Kind(416),
    "unknown_host": Kind(421),
    "queue_full": Kind(429, "rate_limit_error"),
    "request_poisoned": Kind(500, "request_poisoned"),
    "journal_failing": Kind(503, "service_unavailable"),
    "journal_taken": Kind(503, "service_unavailable"),
    "unavailable": Kind(503, "service_unavailable"),
}
INTERNAL = Kind(500, "internal_error", "internal_error")


def kind_of(refusal: Refusal) -> Kind:
    return KINDS.get(refusal.code, INTERNAL)


def error_body(refusal: Refusal) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`"""
    kind = kind_of(refusal)
    message = refusal.message if len(refusal.message) <= MAX_MESSAGE else refusal.message[: MAX_MESSAGE - 1] + "…"
    return {
        "error": {
            "message": message.encode("utf-8", "replace").decode(),
            "type": kind.type,
            "param": refusal.param,
            "code": kind.code or refusal.code,
        }
    }


def headers_of(refusal: Refusal) -> dict[str, str]:
    """When to come back, for those who came too early."""
    if kind_of(refusal).status not in (429, 503):
        return {}
    return {"retry-after": str(max(1, math.ceil(float(getattr(refusal, "retry_after_seconds", 1.0)))))}


def error_response(refusal: Refusal, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    return reply(scope, error_body(refusal), kind_of(refusal).status, {**headers_of(refusal), **(headers or {})})
