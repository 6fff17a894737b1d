"""The same interface in msgpack: what is taken, what is given, errors and streams among it."""

from collections.abc import Iterator
from typing import Any

import httpx
import msgpack
import pytest

from loaders.adapters import save_adapter
from tests.engines import random_adapter, tiny_model
from tests.http_world import Served, events_of, served, tiny_backend

MSGPACK = "application/msgpack"
BODY: dict[str, Any] = {"prompt": "Once", "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("adapters")
    save_adapter(folder / "voice", random_adapter(tiny_model(), seed=1))
    with served(tiny_backend(folder)) as opened:
        yield opened


def send(door: Served, body: dict[str, Any], path: str = "/v1/completions", **headers: str) -> httpx.Response:
    given = {"Content-Type": MSGPACK, "Accept": MSGPACK, **headers}
    return door.client.post(path, content=msgpack.packb(body), headers=given)


def test_an_answer_in_msgpack_is_the_answer_in_json(door: Served) -> None:
    answer = send(door, BODY)
    assert answer.headers["content-type"] == MSGPACK
    found, expected = msgpack.unpackb(answer.content), door.post("/v1/completions", BODY).json()
    assert found["choices"] == expected["choices"]
    assert found.keys() == expected.keys()


def test_either_side_may_be_json(door: Served) -> None:
    assert send(door, BODY, Accept="application/json").json()["choices"]
    assert msgpack.unpackb(door.post("/v1/completions", BODY, headers={"Accept": MSGPACK}).content)["choices"]


@pytest.mark.parametrize("accept", ["*/*", "application/json, application/msgpack", "text/html", ""])
def test_json_is_given_unless_msgpack_is_asked_for(door: Served, accept: str) -> None:
    assert send(door, BODY, Accept=accept).headers["content-type"] == "application/json"


def test_ids_in_msgpack_are_a_prompt(door: Served) -> None:
    ids = msgpack.unpackb(send(door, {**BODY, "prompt": list(b"Once")}).content)
    assert ids["choices"] == door.post("/v1/completions", BODY).json()["choices"]


def test_errors_are_dressed_alike(door: Served) -> None:
    refused = send(door, {**BODY, "temperature": -1})
    assert refused.status_code == 400
    assert msgpack.unpackb(refused.content)["error"]["param"] == "temperature"
    missing = door.client.get("/v1/models/nobody", headers={"Accept": MSGPACK})
    assert msgpack.unpackb(missing.content)["error"]["code"] == "model_not_found"
    elsewhere = door.client.get("/v1/models", headers={"Accept": MSGPACK, "Host": "evil.example"})
    assert msgpack.unpackb(elsewhere.content)["error"]["code"] == "unknown_host"


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/tiny", "/v1/system", "/health", "/ready", "/tokenizer_info", "/openapi.json"]
)
def test_every_route_without_a_body_speaks_it(door: Served, path: str) -> None:
    answer = door.client.get(path, headers={"Accept": MSGPACK})
    assert answer.headers["content-type"] == MSGPACK
    assert msgpack.unpackb(answer.content).keys() == door.client.get(path).json().keys()


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/system/kill_engine", {}),
    ("/v1/system/suspend", {}),
    ("/v1/system/resume", {}),
    ("/v1/completions", BODY),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "temperature": 0}),
    ("/tokenize", {"prompt": "Grüße", "return_token_strs": True}),
    ("/detokenize", {"tokens": list(b"Once")}),
    ("/v1/load_lora_adapter", {"lora_name": "voice"}),
    ("/v1/unload_lora_adapter", {"lora_name": "voice"}),
]


def test_every_route_with_a_body_takes_it_and_gives_it(door: Served) -> None:
    paths = door.client.get("/openapi.json").json()["paths"]
    assert {path for path, _ in BODIES} == {
        path for path, operations in paths.items() for operation in operations.values() if "requestBody" in operation
    }
    for path, body in BODIES:
        found = send(door, body, path)
        assert (found.status_code, found.headers["content-type"]) == (200, MSGPACK), path
    for path, body in BODIES:
        found, expected = send(door, body, path), door.post(path, body)
        if path.endswith("unload_lora_adapter"):
            assert (found.status_code, expected.status_code) == (200, 404)
        else:
            assert told(msgpack.unpackb(found.content)) == told(expected.json()), path


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """What is the same each time."""
    return {name: value for name, value in answer.items() if name not in ("id", "created", "usage")}


def test_what_is_done_to_the_system_is_told_in_it(door: Served) -> None:
    headers = {"Accept": MSGPACK}
    for path in ("/v1/system/suspend", "/v1/system/resume"):
        assert "suspended" in msgpack.unpackb(door.client.post(path, headers=headers).content)
    public_id = door.post("/v1/completions", BODY).json()["id"]
    assert msgpack.unpackb(door.client.delete(f"/v1/requests/{public_id}", headers=headers).content)["cancelled"]
    missing = door.client.get("/nowhere", headers=headers)
    assert msgpack.unpackb(missing.content)["error"]["code"] == "not_found"
    wrong = door.client.get("/v1/completions", headers=headers)
    assert msgpack.unpackb(wrong.content)["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nNo colon\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 101, 431),
        (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            400,
        ),
    ],
)
def test_what_is_no_http_is_told_so_in_it(door: Served, head: bytes, status: int) -> None:
    answer = door.raw(head + b"Accept: application/msgpack\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d" % status) and b"content-type: application/msgpack" in answer
    assert msgpack.unpackb(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_a_stream_is_objects_one_behind_the_other(door: Served) -> None:
    answer = send(door, {**BODY, "stream": True})
    objects = list(unpacked(answer.content))
    assert objects[-1] == {"data": "[DONE]"}
    events = events_of(door.post("/v1/completions", {**BODY, "stream": True}).text)
    assert whole([part["data"] for part in objects[:-1]]) == whole(events)
    assert [part["id"].rpartition(":")[2] for part in objects[:-1]][-1] == "6"


def whole(events: list[dict[str, Any]]) -> tuple[str, str]:
    """Text and reason; which tokens come together in one event is a matter of time."""
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


def unpacked(content: bytes) -> Iterator[Any]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(content)
    yield from unpacker
