"""msgpack as it is taken here: the values that JSON has, and no more. Counted before anything is built.

A few bytes of msgpack can announce an array of four thousand million, and arrays in arrays multiply that. So the bytes
are walked first: each value needs at least a byte, and what is announced must be there.
"""

import math
from typing import Any

import msgpack

from deploy.http.json_body import MAX_DEPTH, MAX_KEYS
from engine.refusal import BadRequest


def decode_msgpack(data: bytes) -> Any:
    """The value, or the refusal that these bytes deserve."""
    check_announced(data)
    try:
        return msgpack.unpackb(data, strict_map_key=False, object_pairs_hook=unique)
    except (ValueError, msgpack.exceptions.UnpackException) as trouble:
        raise BadRequest(f"the body is not msgpack: {str(trouble)[:100] or type(trouble).__name__}") from None


def encode_msgpack(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


def check_announced(data: bytes) -> None:
    """Refuse what is cut short, has a tail, is nested too deeply, or has a type that JSON has not."""
    position, length, num_left = 0, len(data), 1
    outer: list[int] = []  # at each level around this one, how many values are still to come
    while True:
        if not num_left:
            if not outer:
                break
            num_left = outer.pop()
            continue
        if position >= length:
            raise BadRequest("the body is not msgpack: it announces more than it brings")
        num_left -= 1
        size = SIZES[data[position]]
        if size:
            position += size
            continue
        size, num_inside = value_at(data, position)
        position += size
        if num_inside > length - position:
            raise BadRequest("the body is not msgpack: it announces more than it brings")
        if num_inside:
            outer.append(num_left)
            num_left = num_inside
            if len(outer) > MAX_DEPTH:
                raise BadRequest(f"the body is nested more than {MAX_DEPTH} levels deep")
    if position != length:
        raise BadRequest("the body is not msgpack: its end is not where it should be")


def fixed_size(first: int) -> int:
    """How many bytes a value takes that begins so; 0 where the first byte does not say."""
    if first < 0x80 or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
        return 1
    if 0xA0 <= first <= 0xBF:
        return 1 + (first & 0x1F)
    return {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}.get(first, 0)


SIZES = tuple(map(fixed_size, range(256)))
STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}  # first byte -> bytes of length
ARRAYS, MAPS = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}


def value_at(data: bytes, position: int) -> tuple[int, int]:
    """How many bytes the value's own part takes, and how many values are inside."""
    first = data[position]
    if 0x80 <= first < 0x90:
        return 1, 2 * (first & 0x0F)
    if 0x90 <= first < 0xA0:
        return 1, first & 0x0F
    for widths, per_entry in ((STRINGS, 0), (ARRAYS, 1), (MAPS, 2)):
        if first in widths:
            width = widths[first]
            length = int.from_bytes(data[position + 1 : position + 1 + width], "big")
            return (1 + width, per_entry * length) if per_entry else (1 + width + length, 0)
    raise BadRequest(f"the body has a msgpack value of type {first:#x}; only what JSON has is taken")


def unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise BadRequest(f"an object has {len(pairs)} keys; {MAX_KEYS} is the limit")
    if not all(isinstance(name, str) for name, _ in pairs):
        raise BadRequest("a map's keys must be texts")
    made = dict(pairs)
    if len(made) != len(pairs):
        raise BadRequest("a key comes twice")
    if any(isinstance(value, float) and not math.isfinite(value) for value in made.values()):
        raise BadRequest("a number is not finite")
    return made
