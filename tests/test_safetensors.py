"""Our reader against broken files, against the `safetensors` package, and against MLX's own writer."""

import json
import os
import struct
from pathlib import Path
from random import Random
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.refusal import BrokenFile, Refusal, Unsupported
from loaders import safetensors_header
from loaders.safetensors import NAMES, open_tensors, read_header, save
from loaders.safetensors_header import BITS_OF

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(BrokenFile) as caught:
        open_tensors(path)
    return caught.value.message


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has 0 bytes"),
        (b"1234567", "has 7 bytes"),
        (file_of({}, length=3), "announces a header of 3 bytes, but only 2 follow"),
        (file_of({}, length=2**63), f"header of {2**63} bytes; at most"),
        (file_of(b""), "is not JSON"),
        (file_of(b"\xff{}"), "is not UTF-8"),
        (file_of(b"{"), "is not JSON"),
        (file_of(b"[]"), "holds a list"),
        (file_of(b'{"a":' + b"[" * 100_000), "is nested too deeply"),
        (file_of(b'{"a":NaN}'), "NaN is not a JSON value"),
        (file_of(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}"), "is not JSON"),
        (file_of(b'{"a":%(e)s,"a":%(e)s}' % {b"e": json.dumps(F32).encode()}, b"1234"), "the name 'a' twice"),
        (file_of({"__metadata__": {"a": 1}}), "'a' is not a string"),
        (file_of({"__metadata__": []}), "an object is wanted"),
        (file_of(b'{"__metadata__":{"\\ud800":""}}'), "half a character"),
        (file_of({"a": []}), "needs an object of dtype, shape and data_offsets"),
        (file_of({"a": F32 | {"x": 1}}, b"1234"), "and nothing else"),
        (file_of({"a": F32 | {"dtype": "Q7"}}, b"1234"), "has the type 'Q7'; known are"),
        (file_of({"a": F32 | {"dtype": 1}}, b"1234"), "has a type that is a int; a string is wanted"),
        (file_of(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'), "has the shape [-0.0]"),
        (file_of({"a": F32 | {"shape": [-1]}}, b"1234"), "has the shape [-1]"),
        (file_of({"a": F32 | {"shape": [1.0]}}, b"1234"), "has the shape [1.0]"),
        (file_of({"a": F32 | {"shape": [True]}}, b"1234"), "has the shape [True]"),
        (file_of({"a": F32 | {"shape": [2**31]}}, b"1234"), "has the shape [2147483648]"),
        (file_of({"a": F32 | {"shape": [2**31 - 1] * 3}}, b"1234"), "overflows 64 bits"),
        (file_of({"a": F32 | {"shape": [2**31 - 1] * 3 + [0]}}, b"1234"), "overflows 64 bits"),
        (file_of({"a": F32 | {"shape": [2]}}, b"1234"), "needs 8 bytes, not 4"),
        (file_of({"a": F32 | {"dtype": "F4", "data_offsets": [0, 0]}}), "not a whole number of bytes"),
        (file_of({"a": F32 | {"data_offsets": [0]}}, b"1234"), "two whole numbers are wanted"),
        (file_of({"a": F32 | {"data_offsets": [4, 0]}}, b"1234"), "before it starts"),
        (file_of({"a": F32 | {"data_offsets": [0, 2**64]}}, b"1234"), "two whole numbers are wanted"),
        (file_of({"a": F32 | {"data_offsets": [4, 8]}}, b"12345678"), "leaves a gap of 4 bytes"),
        (file_of({"a": F32, "b": F32}, b"1234"), "overlaps the one before it"),
        (file_of({"a": F32}, b"123"), "is truncated"),
        (file_of({"a": F32}, b"12345"), "1 bytes behind its last tensor"),
    ],
)
def test_each_fault_has_its_own_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    assert sentence in refusal(tmp_path / "broken.safetensors", content)


def test_numbers_of_tensors_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_TENSORS", 1)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    assert "lists 2 tensors; at most 1" in refusal(tmp_path / "many.safetensors", file_of({"a": empty, "b": empty}))


def test_missing_file_and_directory_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BrokenFile, match="No such file"):
        open_tensors(tmp_path / "none.safetensors")
    with pytest.raises(BrokenFile, match="directory"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("dtype", list(NAMES))
def test_every_type_of_mlx_survives_a_round_trip(tmp_path: Path, dtype: mx.Dtype) -> None:
    values = mx.array(np.arange(24).reshape(2, 3, 4)).astype(dtype)
    tensors = {"a": values, "scalar": values[1, 2, 3], "empty": mx.zeros((0, 5), dtype), "turned": values.T}
    save(tmp_path / "ours.safetensors", tensors, {"format": "mlx"})
    ours = open_tensors(tmp_path / "ours.safetensors")
    theirs: Any = mx.load(str(tmp_path / "ours.safetensors"))
    assert set(ours) == set(tensors) == set(theirs)
    assert ours.header.metadata == {"format": "mlx"}
    for name, array in tensors.items():
        for read in (ours[name], theirs[name]):
            assert read.dtype == dtype and read.shape == array.shape
            assert mx.array_equal(read, array)


def test_file_of_mlx_is_read(tmp_path: Path) -> None:
    tensors = {
        "a": mx.random.normal((7, 5)).astype(mx.bfloat16),
        "odd": mx.array([1, 2, 3], mx.uint8),
        "b": mx.ones((3,)),
    }
    mx.save_safetensors(str(tmp_path / "x.safetensors"), tensors, {"some": "text"})
    read = open_tensors(tmp_path / "x.safetensors")
    assert read.header.metadata == {"some": "text"}
    assert all(mx.array_equal(read[name], array) for name, array in tensors.items())


@pytest.mark.parametrize("dtype", BITS_OF)
def test_sizes_of_types_are_those_of_the_package(tmp_path: Path, dtype: str) -> None:
    entry = {"dtype": dtype, "shape": [8], "data_offsets": [0, BITS_OF[dtype]]}
    content = file_of({"a": entry}, bytes(BITS_OF[dtype]))
    (tmp_path / "x.safetensors").write_bytes(content)
    assert package_accepts(content)
    read_header(tmp_path / "x.safetensors")


def test_type_that_mlx_lacks_is_refused_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(file_of({"a": F32 | {"dtype": "F8_E4M3", "shape": [4]}}, b"1234"))
    with pytest.raises(Unsupported, match="has the type F8_E4M3"):
        open_tensors(tmp_path / "x")["a"]


def test_failed_save_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path, {"a": mx.ones(3)})
    before = path.read_bytes()
    with pytest.raises(Unsupported, match="complex64"):
        save(path, {"a": mx.ones(3), "b": mx.zeros(2, mx.complex64)})
    with pytest.raises(BrokenFile, match="cannot be written"):
        save(tmp_path / "nowhere" / "x", {"a": mx.ones(3)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.safetensors"]


STRICTER = ("twice", "needs an object of dtype", "has a type that is a dict", "whole numbers up to 2147483647")
sizes = st.one_of(st.integers(0, 4), st.sampled_from([-1, 2**31, 2**63, 2**64, 1.0, True, None, "1"]))
names = st.sampled_from(["a", "b", "model.norm.weight", "", "é", "\ud800"])


@st.composite
def headers(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A header that is nearly right, and the bytes of data that it needs."""
    listed: dict[str, Any] = {}
    end = 0
    if draw(st.booleans()):
        listed["__metadata__"] = draw(st.sampled_from([{"a": "b"}, {}, None, {"a": 1}, []]))
    for name in draw(st.lists(names, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(["F32", "BF16", "U8", "F4", "I64", "X"]))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        start, end = end, end + int(np.prod(shape)) * BITS_OF.get(dtype, 8) // 8
        listed[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    is_wrong: bool = draw(st.booleans())
    if listed and is_wrong:
        name = draw(st.sampled_from(sorted(listed)))
        field = draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        if name != "__metadata__":
            listed[name][field] = draw(st.one_of(st.lists(sizes, max_size=3), sizes, st.just({"F32": None})))
    return listed, end


PUT_IN = (b"", b"0", b"1", b"9", b"-", b'"', b"]", b"{", b",", b"\0", b"\xff", b"e9", b"\\ud8")


@st.composite
def nearly_files(draw: st.DrawFn) -> list[bytes]:
    """A file as its header wants it, and twelve copies with some bytes put in, left out or changed."""
    listed, num_bytes = draw(headers())
    whole = file_of(listed, bytes(num_bytes + draw(st.sampled_from([0, 0, 0, 1, -1])) if num_bytes else 0))
    chance = Random(draw(st.integers(0, 2**32)))
    return [whole, *(damaged(whole, chance) for _ in range(12))]


def damaged(whole: bytes, chance: Random) -> bytes:
    at, drop, put = chance.randint(0, len(whole)), chance.choice((0, 1, 1, 2, 8)), chance.choice(PUT_IN)
    changed = whole[:at] + put + whole[at + drop :]
    # Half of them have a length that fits, so that the fault is found further in.
    if at >= 8 and chance.random() < 0.5:
        changed = struct.pack("<Q", max(0, struct.unpack("<Q", whole[:8])[0] + len(put) - drop)) + changed[8:]
    return changed


def package_accepts(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return False
    return True


def judge(path: Path, content: bytes) -> None:
    """Our verdict is the package's, or stricter for a reason that is written down; what is accepted can be read."""
    path.unlink(missing_ok=True)  # to write over a file waits for the disk
    path.write_bytes(content)
    try:
        tensors = open_tensors(path)
    except BrokenFile as fault:
        assert not package_accepts(content) or any(reason in fault.message for reason in STRICTER), fault.message
        return
    assert package_accepts(content), "the package refuses this one"
    for name in tensors:
        try:
            assert tensors[name].shape == tensors.header.tensors[name].shape
        except Refusal as fault:
            assert isinstance(fault, Unsupported)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzzed"


@settings(max_examples=800, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=nearly_files())
def test_verdict_on_damaged_headers_is_the_packages(fuzzed: Path, files: list[bytes]) -> None:
    for content in files:
        judge(fuzzed, content)


@settings(max_examples=500, deadline=None)
@given(content=st.binary(max_size=64))
def test_verdict_on_noise_is_the_packages(fuzzed: Path, content: bytes) -> None:
    judge(fuzzed, content)
    judge(fuzzed, file_of(content))
    judge(fuzzed, file_of(b"{" + content + b"}"))
