"""JSON as it is taken here: strict UTF-8, one meaning, finite numbers, no deep nesting. Anything else is refused."""

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

from engine.refusal import BadRequest

MAX_DEPTH = 32
MAX_KEYS = 4096  # of one object
# A string that is never closed ends with the body, or each quote in it would be tried as the beginning of one.
BRACKETS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


def decode_json(data: bytes) -> Any:
    """The value, or the refusal that these bytes deserve."""
    check_depth(data)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_float=finite,
            parse_constant=no_constant,
        )
    except UnicodeDecodeError as trouble:
        raise BadRequest(f"the body is not UTF-8: byte {trouble.start}") from None
    except json.JSONDecodeError as trouble:
        raise BadRequest(f"the body is not JSON: {trouble.msg} at character {trouble.pos}") from None
    except ValueError:  # Python reads no number of more than 4300 digits
        raise BadRequest("the body has a number of thousands of digits") from None
    if b"\\u" in data:
        check_unicode(value)
    return value


def check_depth(data: bytes) -> None:
    """Count before parsing: the parser would recurse."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in BRACKETS.finditer(data):
        first = match[0][0]
        depth += (first in b"[{") - (first in b"]}")
        if depth > MAX_DEPTH:
            raise BadRequest(f"the body is nested more than {MAX_DEPTH} levels deep")


def check_unicode(value: Any) -> None:
    """An escape can say half a character, which no text can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequest("the body has half a character: a surrogate without its other half") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise BadRequest(f"an object has {len(pairs)} keys; {MAX_KEYS} is the limit")
    made = dict(pairs)
    if len(made) != len(pairs):
        double = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise BadRequest(f"the key {double[:40]!r} comes twice", double[:40])
    return made


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadRequest(f"the number {text[:40]} is too large")
    return value


def no_constant(text: str) -> NoReturn:
    raise BadRequest(f"{text} is not JSON")
