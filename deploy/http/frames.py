"""Frames: how a stream's payloads stand one behind the other: as server-sent events, or as msgpack objects."""

import json
from typing import Any, Protocol

from deploy.http.msgpack_body import encode_msgpack

# What JSON lets stand and some clients take for the end of a line.
LINE_ENDS = str.maketrans({character: f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"})
dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class Frames(Protocol):
    """A way of writing payloads."""

    media_type: str
    done: bytes
    waiting: bytes  # says that the connection lives

    def frame(self, payload: dict[str, Any], position: str | None) -> bytes: ...


class EventFrames:
    """Server-sent events; an event's id is the position behind it."""

    media_type = "text/event-stream"
    done = b"data: [DONE]\n\n"
    waiting = b": waiting\n\n"

    def frame(self, payload: dict[str, Any], position: str | None) -> bytes:
        head = "" if position is None else f"id: {position}\n"
        data = dumps(payload)
        if not data.isascii():
            data = data.translate(LINE_ENDS)
        return f"{head}data: {data}\n\n".encode("utf-8", "replace")


class MsgpackFrames:
    """Objects of an `id`, which is the position, and `data`; the last one's data is "[DONE]"."""

    media_type = "application/msgpack"
    done = encode_msgpack({"data": "[DONE]"})
    waiting = b""

    def frame(self, payload: dict[str, Any], position: str | None) -> bytes:
        return encode_msgpack({"data": payload} if position is None else {"id": position, "data": payload})
