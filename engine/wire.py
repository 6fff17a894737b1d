"""Wire: requests and events as msgpack. Each record is an array: version, kind, then its fields in order.

What comes in is not trusted: a malformed record is refused with the reason, and nothing else is ever raised.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

import msgpack

from engine.event import EVENT_KINDS, ChoiceEnded, Event, FinishReason, PromptScored, TokenEvent, TokenLogprob
from engine.refusal import BadRequest, shown
from engine.request import Request, Sampling

VERSION = 1
MAX_RECORD_BYTES = 64 * 1024 * 1024
KINDS = {kind.__name__: kind for kind in EVENT_KINDS}
SAMPLING_FIELDS = tuple(field.name for field in fields(Sampling))
REQUEST_FIELDS = tuple(field.name for field in fields(Request))
EVENT_TYPES: dict[str, tuple[type, ...]] = {  # what may stand in the events' fields
    "request_id": (str,),
    "name": (str,),
    "message": (str, type(None)),
    "finish_reason": (str, type(None)),
    "choice": (int,),
    "position": (int,),
    "token": (int,),
    "cached_tokens": (int,),
    "logprob": (list, type(None)),
    "logprobs": (list,),
}
REASONS: dict[type, tuple[str | None, ...]] = {
    TokenEvent: (*get_args(FinishReason), None),
    ChoiceEnded: get_args(FinishReason),
}


def pack_request(request: Request) -> bytes:
    sampling = {name: plain(getattr(request.sampling, name)) for name in SAMPLING_FIELDS}
    rest = {name: plain(getattr(request, name)) for name in REQUEST_FIELDS if name != "sampling"}
    return bytes(msgpack.packb([VERSION, "Request", rest, sampling]))


def unpack_request(data: bytes) -> Request:
    """The request; what stands in its fields is for `engine.limits` to judge."""
    body = unpack(data, "Request", 2)
    if not all(isinstance(part, dict) for part in body):
        raise BadRequest("a request record is two maps: its own fields and its sampling")
    rest, sampling = body
    refuse_unknown(rest, REQUEST_FIELDS)
    refuse_unknown(sampling, SAMPLING_FIELDS)
    if "id" not in rest or "prompt" not in rest:
        raise BadRequest("a request record needs an id and a prompt")
    if "sampling" in rest:
        raise BadRequest("a request record has its sampling beside its own fields, not among them", "sampling")
    return Request(**tupled(rest), sampling=Sampling(**tupled(sampling)))


def pack_events(events: list[Event]) -> bytes:
    """A step's events as one message."""
    return bytes(msgpack.packb([VERSION, "Events", [(type(event).__name__, *event) for event in events]]))


def unpack_events(data: bytes) -> list[Event]:
    (records,) = unpack(data, "Events", 1)
    if not isinstance(records, list):
        raise BadRequest("an events record is a list of events")
    return [event_of(record) for record in records]


def unpack(data: bytes, kind: str, num_fields: int) -> list[Any]:
    if len(data) > MAX_RECORD_BYTES:
        raise BadRequest(f"a record has {len(data)} bytes; {MAX_RECORD_BYTES} is the limit")
    try:
        record = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise BadRequest(f"not a msgpack record: {error or type(error).__name__}") from None
    if not isinstance(record, list) or len(record) != 2 + num_fields:
        raise BadRequest(f"a {kind} record is an array of {2 + num_fields}")
    if record[0] != VERSION:
        raise BadRequest(f"a record of version {shown(record[0])}; this system reads version {VERSION}")
    if record[1] != kind:
        raise BadRequest(f"a record of kind {shown(record[1])} where {kind!r} was wanted")
    return record[2:]


def event_of(record: Any) -> Event:
    if not isinstance(record, list) or not record or not isinstance(record[0], str) or record[0] not in KINDS:
        raise BadRequest("an event starts with its kind: " + ", ".join(KINDS))
    kind, values = KINDS[record[0]], record[1:]
    if len(values) != len(kind._fields):
        raise BadRequest(f"{record[0]} has {len(kind._fields)} fields; got {len(values)}")
    for name, value in zip(kind._fields, values, strict=True):
        if type(value) not in EVENT_TYPES[name]:
            raise BadRequest(f"{record[0]} has {shown(value)} for its {name}", name)
    event: Event = kind(*values)
    if isinstance(event, (TokenEvent, ChoiceEnded)) and event.finish_reason not in REASONS[type(event)]:
        raise BadRequest(f"{record[0]} has {shown(event.finish_reason)} for its finish_reason", "finish_reason")
    try:
        if isinstance(event, TokenEvent) and event.logprob is not None:
            return event._replace(logprob=logprob_of(event.logprob))
        if isinstance(event, PromptScored):
            return event._replace(logprobs=tuple(map(logprob_of, event.logprobs)))
    except (TypeError, ValueError):
        raise BadRequest(f"{record[0]} has a malformed logprob") from None
    return event


def logprob_of(record: Any) -> TokenLogprob:
    token, logprob, top = record
    scores = ((token, logprob), *((other, value) for other, value in top))
    if not all(type(other) is int and type(value) in (int, float) for other, value in scores):
        raise ValueError
    return TokenLogprob(token, logprob, scores[1:])


def refuse_unknown(given: Mapping[Any, Any], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise BadRequest(f"a request record has no field {shown(name)}", shown(name))


def plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def tupled(record: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, and lists in lists, as the tuples that records hold."""

    def tuple_of(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    return {
        name: tuple_of(list(map(tuple_of, value)) if isinstance(value, list) else value)
        for name, value in record.items()
    }
