"""The models that a server says it has: the base, and adapters that come and go while it runs."""

from collections.abc import Iterator

import pytest

from engine.refusal import UnknownAdapter
from loaders.adapters import save_adapter
from tests.engines import random_adapter, tiny_model
from tests.http_world import MODEL, ScriptedBackend, Served, served, tiny_backend


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("voice", "voice-2")):
        save_adapter(folder / name, random_adapter(tiny_model(), seed=seed))
    save_adapter(folder / "misfit", random_adapter(tiny_model("qwen3"), seed=1))
    (folder / "empty").mkdir()
    outside = tmp_path_factory.mktemp("outside")
    save_adapter(outside / "secret", random_adapter(tiny_model(), seed=9))
    (folder / "link").symlink_to(outside / "secret")
    with served(tiny_backend(folder)) as opened:
        yield opened


def load(door: Served, name: str, source: str | None = None) -> int:
    body = {"lora_name": name} if source is None else {"lora_name": name, "lora_path": source}
    return door.post("/v1/load_lora_adapter", body).status_code


def names(door: Served) -> list[str]:
    return [entry["id"] for entry in door.client.get("/v1/models").json()["data"]]


def test_the_base_model_is_listed_in_openais_shape(door: Served) -> None:
    (base,) = [entry for entry in door.client.get("/v1/models").json()["data"] if entry["id"] == MODEL]
    assert base["object"] == "model" and base["parent"] is None and isinstance(base["created"], int)
    assert door.client.get(f"/v1/models/{MODEL}").json() == base


def test_an_adapter_is_a_model_with_a_parent(door: Served) -> None:
    assert load(door, "voice") == 200
    entry = door.client.get("/v1/models/voice").json()
    assert (entry["parent"], entry["rank"]) == (MODEL, 4)


def test_an_adapter_changes_the_answer_and_only_its_own(door: Served) -> None:
    load(door, "voice")
    plain = door.complete("Once").json()
    voice = door.complete("Once", model="voice").json()
    assert voice["model"] == "voice"
    assert voice["choices"][0]["text"] != plain["choices"][0]["text"]
    assert door.complete("Once", adapter="voice").json()["choices"] == voice["choices"]
    assert door.complete("Once", model=MODEL, adapter="voice").json()["choices"] == voice["choices"]
    assert door.complete("Once").json()["choices"] == plain["choices"]


def test_a_newer_version_takes_a_names_place(door: Served) -> None:
    load(door, "changing", "voice")
    old = door.complete("Once", model="changing").json()["choices"]
    assert load(door, "changing", "voice-2") == 200
    assert door.complete("Once", model="changing").json()["choices"] != old
    assert names(door).count("changing") == 1


def test_an_adapter_survives_the_engine(door: Served) -> None:
    load(door, "voice")
    before = door.complete("Once", model="voice").json()["choices"]
    door.client.post("/v1/system/kill_engine")
    assert door.complete("Once", model="voice").json()["choices"] == before


def test_what_is_unloaded_is_gone(door: Served) -> None:
    load(door, "short-lived", "voice")
    assert door.post("/v1/unload_lora_adapter", {"lora_name": "short-lived"}).status_code == 200
    assert "short-lived" not in names(door)
    assert door.complete("Once", model="short-lived").status_code == 404
    assert door.post("/v1/unload_lora_adapter", {"lora_name": "short-lived"}).status_code == 404


@pytest.mark.parametrize(
    "name", ["../voice", "/etc/passwd", "C:\\", "a/b", "", ".", "..", "x" * 65, "vo\u0456ce", "voice\n"]
)
def test_an_adapters_name_is_never_a_path(door: Served, name: str) -> None:
    assert load(door, "fine", name) == 400
    assert load(door, name) == 400


def test_links_do_not_lead_out_of_the_directory(door: Served) -> None:
    assert load(door, "link") == 404
    assert "link" not in door.client.get("/v1/system").json()["loadable"]


def test_what_is_not_there_is_not_found(door: Served) -> None:
    for fields, param in (({}, "lora_name"), ({"lora_path": "missing"}, "lora_path")):
        answer = door.post("/v1/load_lora_adapter", {"lora_name": "nobody"} | fields)
        assert answer.status_code == 404
        assert answer.json()["error"]["param"] == param


def test_what_is_not_loaded_is_named_as_it_was_sent() -> None:
    with served(ScriptedBackend(refuse=UnknownAdapter("no such adapter is attached", "adapter"))) as door:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            assert door.post(path, {"lora_name": "nobody"}).json()["error"]["param"] == "lora_name"


@pytest.mark.parametrize("name", ["misfit", "empty"])
def test_a_bad_adapter_is_refused_at_loading_and_others_go_on(door: Served, name: str) -> None:
    load(door, "voice")
    answer = door.post("/v1/load_lora_adapter", {"lora_name": name})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert name not in names(door)
    assert door.complete("Once", model="voice").status_code == 200


def test_the_base_models_name_is_taken(door: Served) -> None:
    assert load(door, MODEL, "voice") == 400


def test_a_server_without_a_directory_loads_nothing() -> None:
    with served(tiny_backend()) as door:
        assert load(door, "voice") == 400


def test_model_and_adapter_must_not_name_two_adapters(door: Served) -> None:
    load(door, "voice")
    load(door, "voice-2")
    assert door.complete("Once", model="voice", adapter="voice-2").status_code == 400


def test_tokens_come_back_as_the_text_they_were(door: Served) -> None:
    text = "Grüße, 世界!"
    tokens = door.post("/tokenize", {"prompt": text, "model": MODEL}).json()
    assert tokens["count"] == len(text.encode()) == len(tokens["tokens"])
    assert tokens["max_model_len"] == 512
    assert door.post("/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": text}


def test_tokenizing_wants_one_thing_and_a_known_model(door: Served) -> None:
    assert door.post("/tokenize", {}).status_code == 400
    assert door.post("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}).status_code == 400
    assert door.post("/tokenize", {"prompt": "x", "model": "nobody"}).status_code == 404
    assert door.post("/detokenize", {"tokens": [256]}).status_code == 400


def test_ready_says_why_not() -> None:
    with served(ScriptedBackend()) as door:
        door.backend.not_ready = "the model is loading"
        answer = door.client.get("/ready")
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert answer.json() == {"ready": False, "reason": "the model is loading"}
        assert door.client.get("/health").json() == {"status": "ok"}


def test_metrics_count_tokens_by_adapter_streamed_or_not(door: Served) -> None:
    def answered() -> dict[str, float]:
        lines = [
            line for line in door.client.get("/metrics").text.splitlines() if line.startswith("genserve_tokens_total{")
        ]
        return {line.split('"')[1]: float(line.split()[1]) for line in lines}

    assert load(door, "voice") == 200 and load(door, "other", "voice-2") == 200
    before = answered()
    for name, tokens, stream in (("voice", 3, False), ("voice", 4, True), ("other", 5, True), (MODEL, 6, False)):
        assert door.complete("Once", model=name, max_tokens=tokens, ignore_eos=True, stream=stream).status_code == 200
    counted = {name: count - before.get(name, 0) for name, count in answered().items()}
    assert {name: count for name, count in counted.items() if count} == {"voice": 7, "other": 5, "": 6}
    door.post("/v1/unload_lora_adapter", {"lora_name": "other"})


def test_metrics_tell_what_happened(door: Served) -> None:
    door.chat(stream=True, max_tokens=300, ignore_eos=True)  # few may come in one burst
    door.complete("Once", model="nobody")
    text = door.client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines["genserve_time_to_first_token_seconds_count"]) >= 1
    assert float(lines["genserve_between_tokens_seconds_count"]) >= 1
    assert float(lines['genserve_tokens_total{adapter=""}']) > 0
    assert float(lines['genserve_http_requests_total{route="/v1/completions",status="404"}']) >= 1
    for name in ("cached_tokens_total", "replay_mismatches_total"):
        assert f"genserve_{name}" in lines
    for name in ("batch_occupancy", "requests_waiting", "requests_running", "ready", "used_blocks", "num_blocks"):
        assert f"genserve_{name}" in lines
