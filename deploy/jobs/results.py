"""Results: the lines that a batch writes: OpenAI's where a line was OpenAI's, our own fields where it was plain."""

import json
import math
from collections.abc import Mapping
from typing import Any

from deploy.http.errors import error_body, kind_of
from deploy.jobs.lines import Fault, Line
from engine.refusal import Refusal


def answer_line(line: Line, told: Mapping[str, Any]) -> bytes:
    """A line of the output."""
    if line.url is None:
        return packed(name_of(line.number, line.custom_id) | dict(told))
    response = {"status_code": 200, "request_id": told["id"], "body": told}
    return packed(openai_name(line) | {"response": response, "error": None})


def error_line(line: Line | Fault, refusal: Refusal) -> bytes:
    """A line of the error file. What was never asked has no response, as OpenAI has it."""
    if isinstance(line, Line) and line.url is not None:
        body = error_body(refusal)
        response = {"status_code": kind_of(refusal).status, "request_id": request_id(line), "body": body}
        return packed(openai_name(line) | {"line": line.number, "response": response, "error": None})
    error = {"code": refusal.code, "message": refusal.message, "param": refusal.param}
    return packed(name_of(line.number, line.custom_id) | {"error": error})


def name_of(number: int, custom_id: str | None) -> dict[str, Any]:
    return {"line": number} if custom_id is None else {"line": number, "custom_id": custom_id}


def openai_name(line: Line) -> dict[str, Any]:
    return {"id": f"batch_req_{line.seed:016x}", "custom_id": line.custom_id}


def request_id(line: Line) -> str:
    return f"{line.seed:016x}"


def packed(value: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(with_finite_numbers(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def with_finite_numbers(value: Any) -> Any:
    """JSON has no infinity and no NaN, and a logprob may be either: null stands for them."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {name: with_finite_numbers(part) for name, part in value.items()}
        case list() | tuple():
            return [with_finite_numbers(part) for part in value]
        case _:
            return value
