"""The same interface in msgpack: what is taken, what is given, errors and streams among it."""

from collections.abc import Iterator
from typing import Any

import httpx
import msgpack
import pytest

from tests.http_world import Served, events_of, served, tiny_backend

MSGPACK = "application/msgpack"
BODY: dict[str, Any] = {"prompt": "Once", "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def door() -> Iterator[Served]:
    with served(tiny_backend()) as opened:
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


@pytest.mark.parametrize("path", ["/v1/models", "/v1/system", "/health", "/ready"])
def test_every_json_route_speaks_it(door: Served, path: str) -> None:
    answer = door.client.get(path, headers={"Accept": MSGPACK})
    assert answer.headers["content-type"] == MSGPACK
    assert msgpack.unpackb(answer.content)


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
