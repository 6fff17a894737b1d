"""JSON from files that nobody vouches for: one object, each name once, of a bounded size and depth."""

import json
from pathlib import Path
from typing import Any

from engine.refusal import BrokenFile, shown
from loaders.unreadable import reason

MAX_BYTES = 64 << 20  # the longest index of a checkpoint has a few megabytes


class DuplicateName(ValueError):
    """An object has the same name twice, and readers differ in which one they take."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BrokenFile(f"{path} has {size} bytes; such a file has at most {MAX_BYTES}")
        content = path.read_bytes()
    except OSError as trouble:
        raise BrokenFile(f"{path} cannot be read: {reason(trouble)}") from None
    return parse_object(content, str(path))


def parse_object(content: bytes, where: str) -> dict[str, Any]:
    """The object in some bytes; `where` names them in refusals."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as trouble:
        raise BrokenFile(f"{where} is not UTF-8: {trouble.reason} at byte {trouble.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=unique_names, parse_int=whole_number, parse_constant=no_constant)
    except DuplicateName as trouble:
        raise BrokenFile(f"{where} has the name {shown(str(trouble))} twice") from None
    except RecursionError:
        raise BrokenFile(f"{where} is nested too deeply") from None
    except ValueError as trouble:  # JSONDecodeError, and numbers with more digits than Python reads
        raise BrokenFile(f"{where} is not JSON: {trouble}") from None
    if not isinstance(value, dict):
        raise BrokenFile(f"{where} holds a {type(value).__name__}; an object is wanted")
    return value


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise DuplicateName(name)
            seen.add(name)
    return unique


def whole_number(digits: str) -> int | float:
    return -0.0 if digits == "-0" else int(digits)  # a zero with a sign is no whole number: serde_json sees it so


def no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")
