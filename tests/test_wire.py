"""engine/wire.py: what is packed comes back the same, and what is malformed is refused, never anything else."""

from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.event import AdapterWanted, ChoiceEnded, Event, PromptScored, Started, TokenEvent, TokenLogprob
from engine.refusal import BadRequest
from engine.request import Request, Sampling
from engine.wire import pack_events, pack_request, unpack_events, unpack_request

TEXT = st.text(max_size=20)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=8).map(tuple)
COUNTS = st.integers(0, 2**40)
FLOATS = st.floats(allow_nan=False)
REASONS = st.sampled_from(("stop", "length", "abort", "error"))
SAMPLINGS = st.builds(
    Sampling,
    max_tokens=COUNTS,
    temperature=FLOATS,
    top_p=FLOATS,
    top_k=COUNTS,
    min_p=FLOATS,
    seed=st.none() | st.integers(0, 2**64 - 1),
    n=COUNTS,
    stop=st.lists(TEXT, max_size=3).map(tuple),
    stop_token_ids=TOKENS,
    ignore_eos=st.booleans(),
    min_tokens=COUNTS,
    repetition_penalty=FLOATS,
    presence_penalty=FLOATS,
    frequency_penalty=FLOATS,
    logit_bias=st.dictionaries(st.integers(0, 2**31), FLOATS, max_size=4),
    allowed_token_ids=st.none() | TOKENS,
    banned_token_ids=TOKENS,
    logprobs=st.none() | COUNTS,
    prompt_logprobs=st.none() | COUNTS,
)
REQUESTS = st.builds(
    Request,
    id=TEXT,
    prompt=TOKENS,
    sampling=SAMPLINGS,
    adapter=st.none() | TEXT,
    tenant=TEXT,
    priority=st.integers(-16, 16),
    resumed=st.lists(TOKENS, max_size=3).map(tuple),
)
LOGPROBS = st.builds(TokenLogprob, COUNTS, FLOATS, st.lists(st.tuples(COUNTS, FLOATS), max_size=3).map(tuple))
EVENTS = st.lists(
    st.builds(Started, TEXT, COUNTS)
    | st.builds(PromptScored, TEXT, st.lists(LOGPROBS, max_size=3).map(tuple))
    | st.builds(TokenEvent, TEXT, COUNTS, COUNTS, COUNTS, st.none() | REASONS, st.none() | LOGPROBS)
    | st.builds(ChoiceEnded, TEXT, COUNTS, REASONS, st.none() | TEXT)
    | st.builds(AdapterWanted, TEXT),
    max_size=6,
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=12,
)
GOOD_REQUEST = pack_request(Request("id", (1, 2), Sampling(logit_bias={3: 1.0}, stop=("a",)), resumed=((1,), (2, 3))))
GOOD_EVENTS = pack_events([TokenEvent("id", 0, 1, 2, None, TokenLogprob(2, -0.5, ((2, -0.5),))), Started("id", 3)])


@given(REQUESTS)
def test_a_request_comes_back_as_it_was(request: Request) -> None:
    assert unpack_request(pack_request(request)) == request


@given(EVENTS)
def test_events_come_back_as_they_were(events: list[Event]) -> None:
    back = unpack_events(pack_events(events))
    assert back == events
    assert list(map(type, back)) == list(map(type, events))


def taken_or_refused(data: bytes) -> None:
    for unpack in (unpack_request, unpack_events):
        try:
            unpack(data)
        except BadRequest as refusal:
            assert len(refusal.message) <= 300


@given(st.binary(max_size=60))
@example(b"\xdd\x80\x00\x00\x00")  # an array of 2**31 in five bytes
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xdc\xff\xff" * 1000)  # arrays in arrays, none of them complete
@example(b"\x91" * 100_000)
@example(b"\x93\x01\xa7Request" + b"\x91" * 900 + b"\xc0")
@example(b"\x81\x90\x01")  # a map with a list for its key
@example(b"\xc7\x04\xff\x00\x00\x00\x00")  # a timestamp
@example(b"\xd4\x05\x00")
@example(b"")
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    taken_or_refused(data)


@given(st.sampled_from((GOOD_REQUEST, GOOD_EVENTS)), st.data())
@settings(max_examples=500)
def test_damaged_records_are_taken_or_refused(good: bytes, data: st.DataObject) -> None:
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        damaged = damaged or bytearray(b"\0")
    taken_or_refused(bytes(damaged))


@given(
    VALUES, st.sampled_from(("Request", "Events")), st.sampled_from((Started, TokenEvent, PromptScored, ChoiceEnded))
)
@settings(max_examples=300)
def test_well_formed_records_of_nonsense_are_taken_or_refused(value: Any, kind: str, event: type) -> None:
    for record in (
        [1, kind, value],
        [1, kind, value, value],
        [value, kind, []],
        [1, kind, [[event.__name__, value]]],
        value,
    ):
        taken_or_refused(msgpack.packb(record))
    fields = [value] * len(event._fields)  # type: ignore[attr-defined]
    taken_or_refused(msgpack.packb([1, "Events", [[event.__name__, *fields]]]))
    taken_or_refused(msgpack.packb([1, "Request", {"id": value, "prompt": value}, {"stop": value}]))


def changed(record: bytes, *path: Any, value: Any) -> bytes:
    unpacked = inner = msgpack.unpackb(record, strict_map_key=False)
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return bytes(msgpack.packb(unpacked))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (changed(GOOD_REQUEST, 0, value=2), "a record of version 2; this system reads version 1"),
        (changed(GOOD_REQUEST, 1, value="Events"), "a record of kind 'Events' where 'Request' was wanted"),
        (changed(GOOD_REQUEST, 2, "colour", value=1), "has no field 'colour'"),
        (changed(GOOD_REQUEST, 3, "colour", value=1), "has no field 'colour'"),
        (changed(GOOD_REQUEST, 2, "sampling", value={}), "its sampling beside its own fields"),
        (changed(GOOD_REQUEST, 2, value={}), "needs an id and a prompt"),
        (changed(GOOD_REQUEST, 3, value=[]), "two maps"),
        (GOOD_REQUEST + b"\0", "not a msgpack record"),
        (GOOD_REQUEST[:-1], "not a msgpack record"),
        (b"\x01", "a Request record is an array of 4"),
    ],
)
def test_a_malformed_request_is_refused_with_the_reason(data: bytes, sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        unpack_request(data)
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (["Nothing"], "an event starts with its kind"),
        ([], "an event starts with its kind"),
        (["Started", "id"], "Started has 2 fields; got 1"),
        (["Started", "id", "3"], "Started has '3' for its cached_tokens"),
        (["Started", "id", True], "Started has True for its cached_tokens"),
        (["ChoiceEnded", "id", 0, None, None], "ChoiceEnded has None for its finish_reason"),
        (["TokenEvent", "id", 0, 1, 2, "tired", None], "TokenEvent has 'tired' for its finish_reason"),
        (["TokenEvent", "id", 0, 1, 2, None, [1]], "malformed logprob"),
        (["TokenEvent", "id", 0, 1, 2, None, [1, "x", []]], "malformed logprob"),
        (["PromptScored", "id", [[1, 0.5, [[1]]]]], "malformed logprob"),
    ],
)
def test_a_malformed_event_is_refused_with_the_reason(record: list[Any], sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        unpack_events(msgpack.packb([1, "Events", [record]]))
    assert sentence in caught.value.message
