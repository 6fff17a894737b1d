"""Who is let in: keys, hosts, origins, and what one tenant can see and do of another's."""

from collections.abc import Iterator

import pytest

from deploy.http.door_config import check_exposure
from deploy.http.keys import Keys
from engine.refusal import BadRequest
from tests.http_world import Served, id_events_of, served, tiny_backend

ALICE = {"Authorization": "Bearer sk-alice-0001"}
BOB = {"Authorization": "Bearer sk-bob-00002"}
OPERATOR = {"Authorization": "Bearer sk-operator-3"}


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    keys = Keys({"alice": "sk-alice-0001", "bob": "sk-bob-00002", "operator": "sk-operator-3"})
    with served(tiny_backend(), keys, hosts=("models.example",)) as door:
        yield door


@pytest.fixture(scope="module")
def opened() -> Iterator[Served]:
    with served(tiny_backend()) as door:
        yield door


def routes(door: Served) -> list[tuple[str, str]]:
    paths = door.client.get("/openapi.json", headers=OPERATOR).json()["paths"]
    found = [(method.upper(), path) for path, operations in paths.items() for method in operations]
    return [*found, ("GET", "/"), ("GET", "/openapi.json"), ("GET", "/nowhere"), ("PATCH", "/v1/models")]


# Keys


def test_every_route_but_health_wants_a_key(locked: Served) -> None:
    all_routes = routes(locked)
    assert len(all_routes) > 15
    for method, path in all_routes:
        status = locked.client.request(method, path.replace("{", "x").replace("}", "")).status_code
        assert status == (200 if path == "/health" else 401), path


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer wrong",
        "Basic sk-alice-0001",
        "bearer",
        "Bearer sk-alice-0001x",
        "Basic %%%",
        "Bearer \u00ff",
    ],
)
def test_a_wrong_key_and_none_get_the_same_answer(locked: Served, authorization: str) -> None:
    none = locked.client.get("/v1/models")
    wrong = locked.client.get("/v1/models", headers={"Authorization": authorization.encode("latin-1")})
    assert wrong.status_code == none.status_code == 401
    assert wrong.content == none.content
    assert wrong.headers["www-authenticate"].startswith("Bearer")


def test_a_key_opens_as_a_bearer_or_as_a_browsers_password(locked: Served) -> None:
    assert locked.client.get("/v1/models", headers=ALICE).status_code == 200
    assert locked.client.get("/v1/models", auth=("anything", "sk-alice-0001")).status_code == 200


def test_a_browser_that_visits_is_asked_for_its_password(locked: Served) -> None:
    answer = locked.client.get("/", headers={"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic")


def test_comparing_keys_looks_at_all_of_them() -> None:
    keys = Keys({"first": "sk-the-first", "second": "sk-the-second"})
    assert keys.tenant_of("Bearer sk-the-first") == "first"
    assert keys.tenant_of("bearer sk-the-second") == "second"
    assert keys.tenant_of("Bearer sk-the-third") is None


@pytest.mark.parametrize(
    "keys", [{"a b": "sk-long-enough"}, {"../x": "sk-long-enough"}, {"short": "sk"}, {"number": 12345678}]
)
def test_keys_have_plain_names_and_some_length(keys: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        Keys(keys)


def test_an_unknown_route_is_asked_for_a_key_first(locked: Served) -> None:
    assert locked.client.get("/nowhere").status_code == 401
    assert locked.client.get("/nowhere", headers=ALICE).status_code == 404


# Tenants


def test_a_key_is_a_tenant_whatever_the_body_says(locked: Served) -> None:
    fields = {"prompt": "A prompt that both of them send, long enough for some blocks", "max_tokens": 2, "user": "bob"}
    locked.post("/v1/completions", fields, headers=ALICE)
    again = locked.post("/v1/completions", fields, headers=ALICE).json()["usage"]["prompt_tokens_details"]
    others = locked.post("/v1/completions", fields, headers=BOB).json()["usage"]["prompt_tokens_details"]
    assert again["cached_tokens"] > 0
    assert others["cached_tokens"] == 0


def test_a_salt_for_the_cache_is_no_field(locked: Served) -> None:
    fields = {"prompt": "x", "max_tokens": 1, "cache_salt": "alice"}
    assert locked.post("/v1/completions", fields, headers=BOB).status_code == 400


def test_nobody_cancels_or_continues_anothers_request(locked: Served) -> None:
    fields = {"prompt": "Once", "max_tokens": 3, "stream": True}
    done = locked.post("/v1/completions", fields, headers=ALICE)
    public_id, (last, _) = done.headers["x-request-id"], id_events_of(done.text)[0]
    assert locked.client.delete(f"/v1/requests/{public_id}", headers=BOB).status_code == 404
    assert locked.client.delete(f"/v1/requests/{public_id}", headers=ALICE).status_code == 200
    for headers, status in ((BOB, 404), (ALICE, 200)):
        answer = locked.post("/v1/completions", fields, headers={**headers, "Last-Event-ID": str(last)})
        assert answer.status_code == status
        changed = locked.post("/v1/completions", fields | {"n": 2}, headers={**headers, "Last-Event-ID": str(last)})
        assert changed.status_code == 409  # whoever asks, and whether there is such a request or not


def test_the_same_idempotency_key_of_two_tenants_is_two_requests(locked: Served) -> None:
    fields = {"prompt": "Once", "max_tokens": 2}
    ids = {
        locked.post("/v1/completions", fields, headers={**who, "Idempotency-Key": "same"}).json()["id"]
        for who in (ALICE, BOB)
    }
    assert len(ids) == 2


def test_what_concerns_all_is_for_the_operator(locked: Served) -> None:
    for path in ("/v1/system/suspend", "/v1/system/resume", "/v1/system/kill_engine"):
        assert locked.client.post(path, headers=ALICE).status_code == 403
        assert locked.client.post(path, headers=OPERATOR).status_code == 200
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert locked.post(path, {"lora_name": "x"}, headers=ALICE).status_code == 403


def test_nobody_goes_before_other_tenants(locked: Served) -> None:
    fields = {"prompt": "Once", "max_tokens": 1}
    assert locked.post("/v1/completions", {**fields, "priority": -1}, headers=ALICE).status_code == 400
    assert locked.post("/v1/completions", {**fields, "priority": 1}, headers=ALICE).status_code == 200


def test_others_requests_are_seen_only_as_being_there(locked: Served) -> None:
    locked.client.post("/v1/system/suspend", headers=OPERATOR)
    with locked.client.stream("POST", "/v1/completions", json={"prompt": "Once", "stream": True}, headers=ALICE):
        (row,) = locked.client.get("/v1/system", headers=BOB).json()["running"]
        (own,) = locked.client.get("/v1/system", headers=ALICE).json()["running"]
    locked.client.post("/v1/system/resume", headers=OPERATOR)
    assert (row["id"], row["tenant"]) == ("", "")
    assert own["tenant"] == "alice"


# Hosts and origins


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "LOCALHOST:1", "[::1]:8000", "models.example"])
def test_names_of_this_server_are_answered(locked: Served, host: str) -> None:
    assert locked.client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "localhost:x", "::1", "0"]
)
def test_other_names_are_misdirected_even_with_the_right_key(locked: Served, host: str) -> None:
    answer = locked.client.get("/v1/models", headers={"Host": host, **ALICE})
    assert answer.status_code == 421
    assert answer.json()["error"]["param"] == "host"


def test_a_wrong_host_is_refused_before_the_body_is_read(opened: Served) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000000\r\n\r\n"
    assert opened.raw(head, 1.0).startswith(b"HTTP/1.1 421")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://[broken"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_pages_of_other_sites_get_nothing_and_no_permission(opened: Served, headers: dict[str, str]) -> None:
    answer = opened.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, headers=headers)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_a_preflight_of_another_site_is_refused(opened: Served) -> None:
    headers = {
        "Origin": "https://evil.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    answer = opened.client.options("/v1/completions", headers=headers)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_the_servers_own_page_may(opened: Served) -> None:
    headers = {"Origin": opened.url, "Sec-Fetch-Site": "same-origin"}
    assert opened.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, headers=headers).status_code == 200


def test_a_link_from_elsewhere_may_be_followed(opened: Served) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert opened.client.get("/", headers=headers).status_code == 200


def test_who_listens_to_the_world_wants_keys() -> None:
    with pytest.raises(BadRequest, match="keys"):
        check_exposure("0.0.0.0", Keys())
    check_exposure("0.0.0.0", Keys({"alice": "sk-alice-0001"}))
    for host in ("127.0.0.1", "localhost", "::1"):
        check_exposure(host, Keys())
