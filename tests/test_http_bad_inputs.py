"""What nobody should send, and what is answered: an error in OpenAI's shape that names the field, soon, with no token
drawn and the engine untouched. One test for each kind of trouble, from the bytes of HTTP to a request that kills.
"""

import asyncio
import json
import math
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from actors.ledger_options import LedgerOptions
from actors.refusals import JournalFailing, Overloaded, RequestPoisoned, Unavailable
from deploy.http import bodies, framing
from engine.refusal import BrokenFile
from tests.http_world import ScriptedBackend, Served, events_of, read_all, served, tiny_backend

CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
JSON = {"Content-Type": "application/json"}
JSON_LINES = ("Content-Type: application/json", "Content-Length: 5000")
MSGPACK = {"Content-Type": "application/msgpack"}


@pytest.fixture(scope="module")
def door() -> Iterator[Served]:
    with served(tiny_backend()) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
def engine_is_untouched(door: Served) -> Iterator[None]:
    """Whatever was sent, the model's process has not died of it."""
    yield
    system = door.client.get("/v1/system").json()
    assert system["tree"]["children"][0]["restarts"] == 0
    assert system["stats"]["engine"]["used_blocks"] == 0
    assert door.chat().status_code == 200


@pytest.fixture
def scripted() -> Iterator[Served]:
    with served(ScriptedBackend()) as opened:
        yield opened


def refused(door: Served, fields: dict[str, Any], path: str = COMPLETE, status: int = 400) -> dict[str, Any]:
    """The error of a body that must be refused, in OpenAI's shape, before the engine had work."""
    prompts = {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Hi"}
    before, began = counts(door), time.monotonic()
    answer = door.post(path, prompts | fields)
    assert time.monotonic() - began < 5
    assert answer.status_code == status, answer.text
    assert counts(door) == before, "nothing was accepted, nothing drawn"
    return error_of(answer.content)


def counts(door: Served) -> dict[str, int]:
    """What was ever accepted, drawn and ended."""
    return dict(asyncio.run(door.backend.stats()).counts)


def error_of(content: bytes) -> dict[str, Any]:
    body = json.loads(content)
    error: dict[str, Any] = body["error"]
    assert body.keys() == {"error"} and error.keys() == {"message", "type", "param", "code"}
    assert 0 < len(error["message"]) <= 400
    return error


def post(door: Served, content: bytes, headers: dict[str, str] = JSON, status: int = 400) -> dict[str, Any]:
    answer = door.client.post(COMPLETE, content=content, headers=headers)
    assert answer.status_code == status, answer.text
    return error_of(answer.content)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def head(*lines: str, target: str = COMPLETE) -> bytes:
    return "\r\n".join([f"POST {target} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode("latin-1")


# HTTP


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", ""]
)
def test_other_content_types_are_not_taken(door: Served, kind: str) -> None:
    post(door, b'{"prompt": "x"}', {"Content-Type": kind}, 415)


def test_a_body_without_a_content_type_is_not_taken(door: Served) -> None:
    content = b'{"prompt":"x"}'
    answer = door.raw(head(f"Content-Length: {len(content)}", "Connection: close") + content)
    assert status_of(answer) == 415


def test_another_charset_is_not_taken(door: Served) -> None:
    post(door, b'{"prompt": "x"}', {"Content-Type": "application/json; charset=utf-16"}, 415)


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: -1"],
        ["Content-Length: 1e9"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Content-Length: 0x10"],
        ["Bad Header: x"],
        ["No-Colon"],
        ["Folded: a\r\n b\r\nContent-Length: +5"],
    ],
)
def test_bodies_of_doubtful_length_end_the_connection(door: Served, lines: list[str]) -> None:
    answer = door.raw(head("Content-Type: application/json", *lines) + b"0\r\n\r\n")
    assert status_of(answer) in (400, 501)
    error_of(answer.partition(b"\r\n\r\n")[2])
    assert b"connection: close" in answer.lower()


def test_what_is_no_http_gets_an_error_all_the_same(door: Served) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9, b"hello\r\n\r\n"):
        assert status_of(door.raw(garbage)) == 400


def test_a_request_without_a_host_is_refused(door: Served) -> None:
    assert status_of(door.raw(b"GET /health HTTP/1.1\r\n\r\n")) == 400


def test_a_body_that_is_declared_too_large_is_refused_unread(door: Served) -> None:
    answer = door.raw(head("Content-Type: application/json", "Content-Length: 100000000"), 1.0)
    assert status_of(answer) == 413


def test_a_body_that_grows_too_large_is_refused_where_it_does(door: Served) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield b" " * 65536

    assert door.client.post(COMPLETE, content=chunks(), headers=JSON).status_code == 413


def test_a_hundred_megabytes_are_refused_before_they_are_kept(door: Served) -> None:
    answer = door.client.post(COMPLETE, content=b"x" * 100_000_000, headers=JSON)
    assert answer.status_code == 413


def test_chunks_of_one_byte_are_refused_soon(door: Served) -> None:
    with socket.create_connection(("127.0.0.1", door.port), 5) as connection:
        connection.sendall(head("Content-Type: application/json", "Transfer-Encoding: chunked"))
        try:
            for _ in range(300):
                connection.sendall(b"1\r\nx\r\n" * 1000)
        except ConnectionError:
            pass
        answer = read_all(connection)
    assert status_of(answer) in (0, 413)  # 0: the connection was reset while we were still sending
    assert door.client.get("/health").status_code == 200


def test_too_many_headers_are_refused(door: Served) -> None:
    assert status_of(door.raw(head(*[f"X-{number}: y" for number in range(10_000)]))) == 431
    assert status_of(door.raw(head(*[f"X-{number}: y" for number in range(framing.MAX_HEADERS + 1)]))) == 431


def test_a_header_of_a_megabyte_is_refused(door: Served) -> None:
    assert status_of(door.raw(head("X: " + "y" * 1_000_000))) in (0, 431)
    assert status_of(door.raw(head("X: " + "y" * (framing.MAX_HEAD_BYTES + 10)))) == 431


def test_an_endless_target_is_refused(door: Served) -> None:
    assert status_of(door.raw(head(target="/" + "a" * (framing.MAX_HEAD_BYTES + 10)))) == 431


def test_a_head_that_comes_too_slowly_is_refused_and_others_are_served(
    door: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framing, "HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", door.port), 5) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: loc")
        assert door.client.get("/health").status_code == 200
        answer = read_all(connection)
        assert status_of(answer) == 408 and b'"code":"request_timeout"' in answer


def test_a_body_that_comes_too_slowly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies.Bodies.__init__, "__defaults__", (bodies.MAX_BODY_BYTES, 0.3))
    with served(ScriptedBackend()) as opened:
        answer = opened.raw(head("Content-Type: application/json", "Content-Length: 50") + b'{"pro', 0.8)
    assert status_of(answer) == 408


def test_bytes_that_drip_win_no_time(door: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(bodies.Bodies.__init__, "__defaults__", (bodies.MAX_BODY_BYTES, 0.3))
    with served(ScriptedBackend()) as opened:
        for begun in (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: ", head(*JSON_LINES)):
            began = time.monotonic()
            with socket.create_connection(("127.0.0.1", opened.port), 5) as connection:
                connection.sendall(begun)
                connection.settimeout(0.02)
                answer = b""
                while not answer and time.monotonic() < began + 5:
                    connection.sendall(b" ")
                    answer = read_all(connection)
            assert status_of(answer) == 408
            assert opened.client.get("/health").status_code == 200


def test_ranges_are_ignored(door: Served) -> None:
    ranges = "bytes=" + ",".join(f"{number}-{number}" for number in range(1500))
    assert door.client.get("/", headers={"Range": ranges}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page/../../secret",
        "/page/%2e%2e%2fapp.py",
        "/%00",
        "/%c0%ae%c0%ae/",
        "/\\\\host\\share",
    ],
)
def test_paths_lead_nowhere_but_to_routes(door: Served, path: str) -> None:
    answer = door.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert status_of(answer) == 404


def test_compressed_bodies_are_not_taken(door: Served) -> None:
    assert (
        post(door, b"\x1f\x8b" + b"\0" * 100, JSON | {"Content-Encoding": "gzip"}, 415)["param"] == "content-encoding"
    )


def test_another_method_is_told_which_there_is(door: Served) -> None:
    answer = door.client.get(CHAT)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    error_of(answer.content)


@pytest.mark.parametrize("path", ["/health", "/ready", "/", "/v1/models", "/v1/models/tiny", "/v1/models/nobody"])
def test_a_head_is_answered_as_a_get_is_without_a_body(door: Served, path: str) -> None:
    head, get = door.client.head(path), door.client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == get.headers[name]
    assert door.client.head(CHAT).status_code == 405


def test_of_thousands_of_requests_at_once_on_one_connection_some_are_answered_and_one_refused(door: Served) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = door.raw(request * 10_000, 60.0)
    assert answer.count(b"HTTP/1.1 200") == framing.MAX_PIPELINED + 1
    last = answer[answer.rindex(b"HTTP/1.1") :]
    assert status_of(last) == 429 and b"retry-after" in last and b"connection: close" in last
    assert error_of(last.partition(b"\r\n\r\n")[2])["code"] == "queue_full"


def test_who_waits_for_answers_may_ask_often_on_one_connection_and_some_may_go_ahead(door: Served) -> None:
    for _ in range(2 * framing.MAX_PIPELINED):
        assert door.client.get("/health").status_code == 200
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = door.raw(request * (framing.MAX_PIPELINED - 1) + last)
    assert answer.count(b"HTTP/1.1 200") == framing.MAX_PIPELINED


@pytest.mark.parametrize("path", ["embeddings", "responses", "responses/x/cancel", "files", "messages/count_tokens"])
def test_a_route_that_other_servers_have_is_refused_by_its_name(door: Served, path: str) -> None:
    answer = door.post(f"/v1/{path}", {"model": "tiny", "input": "x"})
    assert answer.status_code == 404
    assert f"/v1/{path.split('/')[0]} is not supported by this server" in error_of(answer.content)["message"]


# JSON


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"prompt": "x"} and more',
        b'{"prompt": "\xff"}',
        b"\xef\xbb\xbf" + b'{"prompt": "x"}',
        '{"prompt": "x"}'.encode("utf-16"),
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\udc00\\ud800"}',
        b'{"prompt": "a\x00b"}',
        b"{'prompt': 'x'}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"prompt": "x", "metadata": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"prompt": "x", "prompt": "y"}',
        b'{"prompt": "x", "metadata": {"a": 1, "a": 2}}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "temperature": 1e400}',
        b'{"prompt": "x", "max_tokens": ' + b"9" * 100_000 + b"}",
        b"[]",
        b'"prompt"',
        b"null",
        b"17",
    ],
)
def test_what_is_not_strict_json_is_refused(door: Served, content: bytes) -> None:
    post(door, content)


def test_brackets_inside_texts_are_no_nesting(door: Served) -> None:
    assert door.complete('[{"' * 100 + "\\" * 3, max_tokens=1).status_code == 200


def test_a_name_of_ten_kilobytes_is_not_repeated(door: Served) -> None:
    error = refused(door, {"x" * 10_000: 1})
    assert len(error["param"]) < 100


# msgpack


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xdd\x80\x00\x00\x00",  # an array of 2**31
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xdc\xff\xff" * 2000,  # arrays in arrays
        b"\x91" * 100_000,
        msgpack.packb({"prompt": "x"})[:-1],
        msgpack.packb({"prompt": "x"}) + b"\x00",
        msgpack.packb({"prompt": msgpack.ExtType(1, b"x")}),
        msgpack.packb({"prompt": msgpack.Timestamp(1)}),
        msgpack.packb({"prompt": b"bytes"}),
        msgpack.packb({1: "x"}),
        msgpack.packb({"prompt": "x", "temperature": math.nan}),
        msgpack.packb({"prompt": "x", "logit_bias": {"5": math.inf}}),
        b"\x82\xa1a\x01\xa1a\x02",
        b"\xc1",
        b"\x81\xa6prompt\xa2\xff\xff",
        msgpack.packb(["prompt"]),
    ],
)
def test_what_is_not_plain_msgpack_is_refused_before_it_is_built(door: Served, content: bytes) -> None:
    began = time.monotonic()
    post(door, content, MSGPACK)
    assert time.monotonic() - began < 2


def test_a_msgpack_body_that_falls_silent_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies.Bodies.__init__, "__defaults__", (bodies.MAX_BODY_BYTES, 0.2))
    content = msgpack.packb({"prompt": "x"})
    with served(ScriptedBackend()) as opened:
        lines = ("Content-Type: application/msgpack", f"Content-Length: {len(content)}")
        assert status_of(opened.raw(head(*lines) + content[:-2], 0.8)) == 408


# Names


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "/etc/passwd",
        "C:\\",
        "a/b",
        "",
        "x" * 10_000,
        "t\u0456ny",
        "tiny ",
        "org/some-model",
        "http://evil.example",
    ],
)
def test_a_model_that_is_not_registered_is_not_found(door: Served, name: str) -> None:
    for path in (COMPLETE, CHAT):
        error = refused(door, {"model": name}, path, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize("name", ["nobody", "../tiny", "x" * 5000])
def test_an_adapter_that_is_not_loaded_is_not_found(door: Served, name: str) -> None:
    assert refused(door, {"adapter": name}, COMPLETE, 404)["param"] == "adapter"


@pytest.mark.parametrize("name", ["nobody", "..%2f..%2fx", "a/b/c"])
def test_an_unknown_model_has_no_card(door: Served, name: str) -> None:
    assert door.client.get(f"/v1/models/{name}").status_code == 404


def test_a_damaged_adapter_is_refused_with_the_reason(scripted: Served) -> None:
    scripted.backend.refuse = BrokenFile("the adapter's rank is 1000000000")
    answer = scripted.post("/v1/load_lora_adapter", {"lora_name": "x"})
    assert answer.status_code == 400 and "rank" in error_of(answer.content)["message"]


# Sampling


@pytest.mark.parametrize(
    "fields",
    [
        *({"n": value} for value in (10**9, 0, -1, 1.5, "3", True, [1], 129)),
        *({"max_tokens": value} for value in (-1, 10**12, 1.5, "5", True, 0)),
        *({"temperature": value} for value in (-1, 1e300, "hot", True, -1e-9)),
        *({"top_p": value} for value in (0, 1.1, -0.1, "1")),
        *({"top_k": value} for value in (-5, 10**9, 1.5)),
        *({"min_p": value} for value in (2, -0.1)),
        *({"presence_penalty": value} for value in (1e9, -1e9, "x")),
        *({"frequency_penalty": value} for value in (1e9, -1e9)),
        *({"repetition_penalty": value} for value in (0, -1, 1e9)),
        *({"seed": value} for value in (-(2**70), 2**64, 1.5, "7", True)),
        *({"stop_token_ids": value} for value in ([256], [-1], [True], ["1"], [10**30], 5, list(range(2000)))),
        {"stop_token_ids": [256], "min_tokens": 1},
        *({"stop": value} for value in (["x"] * 10_000, "x" * 1_000_000, "", [""], [1], {"a": 1}, ["x" * 257])),
        *({"logprobs": value} for value in (10**9, -1, 21, 1.5, True)),
        *({"priority": value} for value in (17, -17, 0.5, "high")),
        *({"deadline_ms": value} for value in (0, -1, 10**12, "soon")),
        *({"best_of": value} for value in (0, 2, 10**9)),
        *({"prompt_logprobs": value} for value in (1, 10**9)),
        {"n": 128, "prompt": ["x"] * 3},
        {"stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"unknown": 1}},
        {"stream": "yes"},
        {"echo": 1},
        {"suffix": "x"},
    ],
    ids=lambda fields: json.dumps(fields)[:40],
)
def test_a_setting_out_of_range_is_refused_by_name(door: Served, fields: dict[str, Any]) -> None:
    error = refused(door, fields)
    name = next(iter(fields))
    assert name in error["message"] or name in (error["param"] or ""), error


@pytest.mark.parametrize(
    "biases",
    [
        {str(number): 1 for number in range(2000)},
        {"256": 1},
        {"-1": 1},
        {"abc": 1},
        {"5": "x"},
        {"5": 101},
        {"5": None},
        {"1.5": 1},
        {"\u0661": 1},
        {"1_0": 1},
        {" 7 ": 1},
        {"+7": 1},
        {"7": 1, "07": 2},
        {"-0": 1},
        {"": 1},
        [5],
        {"9" * 500: 1},
    ],
)
def test_a_bias_of_what_is_no_token_is_refused(door: Served, biases: Any) -> None:
    assert "logit_bias" in refused(door, {"logit_bias": biases})["message"]


@pytest.mark.parametrize("fields", [{"logit_bias": {}}, {"metadata": {}}, {}])
def test_objects_of_endless_keys_are_refused_soon(door: Served, fields: dict[str, Any]) -> None:
    keys: dict[str, Any] = {str(number): "x" for number in range(100_000)}
    refused(door, dict.fromkeys(fields, keys) or keys)


@pytest.mark.parametrize("value", [1e-300, 1e-9, 0])
def test_a_tiny_temperature_is_greedy(door: Served, value: float) -> None:
    greedy = door.complete("Once").json()["choices"]
    assert door.complete("Once", temperature=value, seed=1).json()["choices"] == greedy


def test_a_prompt_and_its_answer_must_fit_and_the_numbers_are_told(door: Served) -> None:
    error = refused(door, {"prompt": "x" * 500, "max_tokens": 100})
    assert error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in ("500", "100", "512"))


def test_what_does_not_fit_is_named_as_it_was_sent(door: Served) -> None:
    long = "x" * 600
    cases: list[tuple[str, str, dict[str, Any]]] = [
        (CHAT, "messages", {"max_tokens": 99_999}),
        (CHAT, "messages", {"messages": [{"role": "user", "content": long}]}),
        (COMPLETE, "prompt", {"max_tokens": 99_999}),
        (COMPLETE, "prompt", {"prompt": long}),
    ]
    for path, param, fields in cases:
        error = refused(door, fields, path)
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    conversation = door.post("/tokenize", {"messages": [{"role": "user", "content": "x" * 3_000_000}]})
    assert error_of(conversation.content)["param"] == "messages"


def test_answers_to_a_prompt_are_as_many_as_are_written_at_once(door: Served) -> None:
    error = refused(door, {"n": 65})
    assert error["param"] == "n"
    assert error["message"] == "n is 65; this server gives a prompt at most 64 answers, as many as it writes at once"
    assert door.complete(["a"] * 3, n=64, max_tokens=1).status_code == 200


@pytest.mark.parametrize("order", ["suspend", "resume", "kill_engine"])
def test_an_order_takes_no_fields(door: Served, order: str) -> None:
    path = f"/v1/system/{order}"
    error = error_of(door.post(path, {"x": 1}).content)
    assert (error["code"], error["param"]) == ("unsupported", "x")
    assert error["message"] == "this server does not support the field x"
    assert door.post(path, [1]).status_code == 400
    assert door.client.post(path, content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
    assert door.client.post(path, content=b"{", headers=JSON).status_code == 400
    assert door.client.get("/ready").status_code == 200


def test_an_order_may_have_an_empty_object(scripted: Served) -> None:
    assert scripted.post("/v1/system/suspend").json() == {"suspended": True}
    assert scripted.post("/v1/system/suspend", {}).json() == {"suspended": True}


def test_banning_every_token_is_answered_and_crashes_nothing(door: Served) -> None:
    biases = {str(token): -100 for token in range(256)}
    answer = door.complete("Once", logit_bias=biases)
    assert answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] == "length"


def test_logprobs_of_chats_need_the_switch(door: Served) -> None:
    assert "top_logprobs" in refused(door, {"top_logprobs": 3}, CHAT)["message"]
    refused(door, {"logprobs": True, "top_logprobs": 21}, CHAT)
    refused(door, {"logprobs": 3}, CHAT)


# Prompts


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        [""],
        [[]],
        [[[1]]],
        [1, "a"],
        [1, [2]],
        [True],
        [-1],
        [256],
        [1.5],
        [10**30],
        None,
        {"text": "x"},
        ["x"] * 129,
        ["x"] * 100_000,
        list(range(200)) * 500,
    ],
    ids=lambda prompt: json.dumps(prompt)[:30],
)
def test_what_is_no_prompt_is_refused(door: Served, prompt: Any) -> None:
    refused(door, {"prompt": prompt})


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "Hi",
        [{}],
        ["Hi"],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": {"text": "x"}}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": 5}],
        [{"role": "wizard", "content": "x"}],
        [{"role": 5, "content": "x"}],
        [{"role": "tool", "content": "x", "tool_call_id": "1"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "user", "content": "x", "unknown": 1}],
        [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
        [{"role": "user", "content": "x"}] * 5000,
    ],
    ids=lambda messages: json.dumps(messages)[:40],
)
def test_what_is_no_conversation_is_refused(door: Served, messages: Any) -> None:
    assert "messages" in refused(door, {"messages": messages}, CHAT)["param"]


def test_a_text_beyond_the_context_is_refused_before_it_is_tokenized(door: Served) -> None:
    for text in ("a" * 3_000_000, "\u0301" * 1_000_000):
        assert refused(door, {"prompt": text})["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template": "{{ 1 }}"},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {"chat_template_kwargs": {"enable_thinking": "yes"}},
        {"chat_template_kwargs": "x"},
        {"documents": []},
        {"add_generation_prompt": False},
    ],
)
def test_a_template_never_comes_with_a_request(door: Served, fields: dict[str, Any]) -> None:
    refused(door, fields, CHAT)


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#"}, {"enum": list(range(10_000))}, {"$ref": "http://evil.example"}, {"pattern": "(a+)+$"}],
)
def test_a_schema_is_refused_as_not_supported(door: Served, schema: dict[str, Any]) -> None:
    fields = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    assert "response_format" in refused(door, fields, CHAT)["param"]


# Load


def test_a_full_queue_says_when_to_come_back_and_what_was_accepted_is_finished() -> None:
    with served(tiny_backend(limits=LedgerOptions(max_owed_tokens=500))) as opened:
        opened.client.post("/v1/system/suspend")
        fields = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True}
        with (
            opened.client.stream("POST", COMPLETE, json=fields) as first,
            opened.client.stream("POST", COMPLETE, json=fields) as second,
        ):
            answers = [opened.post(COMPLETE, fields) for _ in range(50)]
            opened.client.post("/v1/system/resume")
            for accepted in (first, second):
                assert events_of(accepted.read().decode())[-1]["choices"][0]["finish_reason"] == "length"
    assert {answer.status_code for answer in answers} == {429}
    assert int(answers[0].headers["retry-after"]) >= 1
    assert error_of(answers[0].content)["code"] == "queue_full"


def test_a_deadline_that_nobody_can_keep_is_refused_at_once_and_nothing_is_scheduled(door: Served) -> None:
    assert door.complete().status_code == 200  # so it is known how long a first token takes at least
    door.backend._requests.ledger.load.soonest_seconds = 0.002
    for fields in ({}, {"stream": True}, {"prompt": ["a", "b"]}):
        error = refused(door, {"deadline_ms": 1, **fields}, status=408)
        assert (error["code"], error["param"]) == ("deadline_passed", "deadline_ms")
    door.backend._requests.ledger.load.soonest_seconds = 0.0


def test_of_several_prompts_all_are_accepted_or_none() -> None:
    with served(tiny_backend(limits=LedgerOptions(max_owed_tokens=500))) as opened:
        answer = opened.post(COMPLETE, {"prompt": ["a", "b", "c"], "max_tokens": 200})
        assert answer.status_code == 429
        assert opened.client.get("/v1/system").json()["running"] == []


def test_what_the_system_refuses_has_its_status(scripted: Served) -> None:
    cases = [
        (Overloaded("come back", retry_after_seconds=7), 429, "7"),
        (Unavailable("the model is loading"), 503, "1"),
        (JournalFailing("the disk is full"), 503, "1"),
        (RequestPoisoned("it crashed the engine twice"), 500, None),
    ]
    for refusal, status, retry_after in cases:
        scripted.backend.refuse = refusal
        for fields in ({}, {"stream": True}):
            answer = scripted.chat(**fields)
            assert answer.status_code == status
            assert answer.headers.get("retry-after") == retry_after
            error_of(answer.content)
    assert error_of(answer.content)["type"] == "request_poisoned"


def test_a_mistake_of_ours_is_an_error_in_the_same_shape(scripted: Served) -> None:
    scripted.backend.refuse = ZeroDivisionError("something with a secret in it")
    answer = scripted.chat()
    assert answer.status_code == 500
    assert error_of(answer.content)["code"] == "internal_error"
    assert "secret" not in answer.text


def test_a_request_that_kills_the_engine_twice_alone_is_poisoned_and_others_go_on() -> None:
    with served(poisonable_backend()) as opened:
        expected = opened.complete("Good", max_tokens=200, ignore_eos=True).json()["choices"]
        with opened.client.stream(
            "POST",
            COMPLETE,
            json={"prompt": "Good", "max_tokens": 200, "temperature": 0, "ignore_eos": True, "stream": True},
        ) as bystander:
            answer = opened.complete("Poison")
            text = "".join(event["choices"][0]["text"] for event in events_of(bystander.read().decode()))
    assert answer.status_code == 500
    assert error_of(answer.content)["type"] == "request_poisoned"
    assert text == expected[0]["text"]


def poisonable_backend() -> Any:
    """An engine that dies of a prompt that begins with "Poison"."""
    backend = tiny_backend()
    build = backend._build

    def build_poisonable() -> Any:
        engine = build()
        step = engine.step

        def poisonable_step() -> Any:
            scheduler = engine.scheduler
            for sequence in [*scheduler.prefilling, *scheduler.rows.sequences]:
                assert bytes(sequence.request.prompt[:6]) != b"Poison", "the engine is poisoned"
            return step()

        engine.step = poisonable_step  # type: ignore[method-assign]
        return engine

    backend._build = build_poisonable
    return backend


def test_float32_in_msgpack_is_a_number_like_any_other(door: Served) -> None:
    content = b"\x83" + msgpack.packb("prompt") + msgpack.packb("x") + msgpack.packb("temperature")
    content += b"\xca" + struct.pack(">f", 0.5) + msgpack.packb("max_tokens") + b"\x01"
    assert door.client.post(COMPLETE, content=content, headers=MSGPACK).status_code == 200


def test_a_connection_too_many_is_told_to_come_back(door: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_CONNECTIONS", 0)
    with socket.create_connection(("127.0.0.1", door.port)) as connection:
        answer = read_all(connection)
    assert status_of(answer) == 503 and b'"code":"unavailable"' in answer and b"retry-after: 1" in answer
