"""Bodies as bytes: what is plain comes through unchanged, and whatever else is a refusal, never another exception."""

import contextlib
import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.http.job import parse_position, position_id, request_ids
from deploy.http.json_body import MAX_DEPTH, decode_json
from deploy.http.msgpack_body import decode_msgpack, encode_msgpack
from engine.refusal import BadRequest

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | texts
    | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))


@given(values)
def test_plain_values_come_through_json_unchanged(value: Any) -> None:
    assert decode_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(values)
def test_plain_values_come_through_msgpack_unchanged(value: Any) -> None:
    assert decode_msgpack(encode_msgpack(value)) == value


@settings(max_examples=300)
@given(st.binary(max_size=60))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x91" * 2000)
@example(b"\xde\xff\xff" * 40)
def test_no_bytes_are_anything_but_taken_or_refused(data: bytes) -> None:
    for decode in (decode_json, decode_msgpack):
        with contextlib.suppress(BadRequest):
            decode(data)


@settings(max_examples=300)
@given(values, st.data())
def test_a_damaged_body_is_taken_or_refused(value: Any, data: st.DataObject) -> None:
    packed = bytearray(msgpack.packb(value))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadRequest):
        decode_msgpack(bytes(packed))
    with contextlib.suppress(BadRequest):
        decode_msgpack(bytes(packed[: data.draw(st.integers(0, len(packed)))]))


def test_a_string_that_is_never_closed_is_read_once() -> None:
    body = b"[]" * 40 + b'"' + rb"\"" * (1 << 19)  # a megabyte, which took hours when each quote began a string
    with pytest.raises(BadRequest, match="not JSON"):
        decode_json(body)


@given(st.integers(1, 80))
def test_nesting_has_a_limit_which_is_the_same_in_both(depth: int) -> None:
    nested: Any = []
    for _ in range(depth - 1):
        nested = [nested]
    for decode, data in ((decode_json, json.dumps(nested).encode()), (decode_msgpack, msgpack.packb(nested))):
        if depth <= MAX_DEPTH:
            assert decode(data) == nested
        elif depth > MAX_DEPTH + 1:
            with pytest.raises(BadRequest):
                decode(data)


def test_half_a_character_is_refused_and_a_pair_is_not() -> None:
    assert decode_json(b'"\\ud83d\\ude00"') == "\U0001f600"
    for half in (b'"\\ud83d"', b'"\\ude00\\ud83d"', b'{"\\udfff": 1}'):
        with pytest.raises(BadRequest):
            decode_json(half)


def test_floats_keep_their_value() -> None:
    for value in (0.1, 1e308, 5e-324, -0.0):
        assert math.copysign(1, decode_json(json.dumps(value).encode())) == math.copysign(1, value)
        assert decode_json(json.dumps(value).encode()) == value


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8), st.sampled_from(["", "x3"]))
def test_a_position_is_read_as_it_was_written(had: list[int], suffix: str) -> None:
    public_id = "cmpl-" + "a" * 32 + suffix
    digest = "0123abcd"
    assert parse_position(position_id(public_id, digest, had)) == (public_id, digest, had)


@given(st.text(max_size=60))
def test_no_text_is_an_id_by_accident_that_leads_anywhere_else(text: str) -> None:
    for request_id in request_ids(text):
        assert len(request_id) < 40 and request_id[:32].isalnum()
