"""Complaints: what pydantic finds wrong with a body -> one sentence that says what was wanted and what came."""

from typing import Any

from pydantic import ValidationError

from engine.refusal import BadRequest, Unsupported, shown

KINDS = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
BOUNDS = {
    "finite_number": "finite",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
}
LENGTHS = {
    "string_too_short": "must be at least {min_length} characters long",
    "too_short": "must have at least {min_length} entries; got {actual_length}",
    "too_long": "must have at most {max_length} entries; got {actual_length}",
}
NOT_HERE = ("extra_forbidden", "none_required")  # and lists that must be empty
Path = list[int | str]
Error = Any  # as pydantic tells it


def refusal_of(trouble: ValidationError, body: Any) -> BadRequest | Unsupported:
    """Of several errors the furthest: all members of a union complain, and the one that was meant goes along with the
    value until its fault.
    """
    errors = [(path_of(error, body), error) for error in trouble.errors(include_url=False)]
    path, error = max(errors, key=lambda pair: (len(pair[0]), places(pair[0]), pair[1]["type"] not in KINDS))
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path = [*path, error["ctx"]["discriminator"].strip("'")]
    param = ".".join(str(part)[:60] for part in path)
    if error["type"] in NOT_HERE or error.get("ctx", {}).get("max_length") == 0:
        return Unsupported(f"this server does not support the field {param}", param)
    if error["type"] == "literal_error" and path[-1] == "type" and isinstance(error["input"], str):
        # A part of a content, or a format of the answer, of another kind.
        return Unsupported(f"this server does not support {param} {shown(error['input'])}", param)
    return BadRequest(sentence_of(param, error, [other["type"] for where, other in errors if where == path]), param)


def path_of(error: Error, body: Any) -> Path:
    """Where in the body it is; pydantic's names for a union's members are left out."""
    path: Path = []
    *above, last = error["loc"]
    for part in (*above, last):
        if (isinstance(body, dict) and part in body) or (isinstance(body, list) and isinstance(part, int)):
            body = body[part]
            path.append(part)
    return [*path, last] if error["type"] == "missing" else path


def places(path: Path) -> list[int]:
    return [part if isinstance(part, int) else 0 for part in path]


def sentence_of(param: str, error: Error, beside: list[str]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in KINDS:  # any member of the union would do
        wanted = " or ".join(dict.fromkeys(KINDS[other] for other in beside if other in KINDS))
        return f"{param} must be {wanted}; got {shown(error['input'])}"
    if kind in ("missing", "union_tag_not_found"):
        return f"the field {param} is wanted"
    if kind in LENGTHS:
        is_any_wanted = context.get("min_length") == 1
        return f"{param} must not be empty" if is_any_wanted else f"{param} {LENGTHS[kind].format(**context)}"
    if kind in BOUNDS:
        wanted = BOUNDS[kind].format(**{name: whole(value) for name, value in context.items()})
        return f"{param} must be {wanted}; got {shown(context.get('tag', error['input']))}"
    return f"{param}: {error['msg']}"


def whole(bound: object) -> object:
    """100.0 is written as 100."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound
