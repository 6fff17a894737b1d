"""deploy/http/document.py: what the OpenAPI document says is what is answered."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from deploy.http.document import said
from deploy.http.dress import JSON, MSGPACK
from tests.http_world import Served, served, tiny_backend


@pytest.fixture(scope="module")
def door() -> Iterator[Served]:
    with served(tiny_backend()) as door:
        yield door


def document(door: Served) -> dict[str, Any]:
    found: dict[str, Any] = door.client.get("/openapi.json").json()
    return found


def test_an_answer_of_who_is_not_ready_is_as_described(door: Served) -> None:
    whole = document(door)
    door.client.post("/v1/system/suspend")
    answer = door.client.get("/ready")
    door.client.post("/v1/system/resume")
    assert answer.status_code == 503
    said = whole["paths"]["/ready"]["get"]["responses"]["503"]["content"][JSON]["schema"]
    jsonschema.validate(answer.json(), said | {"components": whole["components"]})


@pytest.mark.parametrize("accepted", [JSON, MSGPACK])
def test_every_answer_comes_as_a_kind_that_is_described(door: Served, accepted: str) -> None:
    for path, operations in document(door)["paths"].items():
        if "get" not in operations:
            continue
        answer = door.client.get(path.replace("{model}", "nobody"), headers={"Accept": accepted})
        content = operations["get"]["responses"][str(answer.status_code)]["content"]
        assert answer.headers["content-type"].partition(";")[0] in content, path
        assert path != "/metrics" or JSON not in content


@pytest.mark.parametrize(
    ("body", "headers"), [({"prompt": "a", "model": "nobody"}, {}), ({}, {"X-Long": "x" * 100_000})], ids=[404, 431]
)
def test_codes_that_are_described_are_those_that_are_answered(
    door: Served, body: dict[str, Any], headers: dict[str, str]
) -> None:
    described = document(door)["paths"]["/v1/completions"]["post"]["responses"]
    answer = door.client.post("/v1/completions", json=body, headers=headers)
    assert answer.json()["error"]["code"] in described[str(answer.status_code)]["description"].split(", ")


def test_codes_that_are_answered_by_another_word_are_not_described() -> None:
    assert said(404) == "model_not_found, not_found, unknown_request"
    assert said(500) == "internal_error, request_poisoned"
