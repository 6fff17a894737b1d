"""The door over real processes on Ray: what was promised inline holds when processes are really killed."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors import process
from actors.exits import KILL
from actors.node import exit, whereis
from actors.system import start_system, stop
from deploy.http.door import DoorConfig, door_spec
from loaders.adapters import save_adapter
from tests.engines import random_adapter, tiny_model
from tests.http_world import MODEL, Served, events_of
from tests.serving import tiny_system
from tests.tiny_tokenizer import write_tokenizer

pytestmark = pytest.mark.ray
LONG = 200


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("system")
    save_adapter(directory / "adapters" / "voice", random_adapter(tiny_model(), seed=3))
    process.connect(num_cpus=2)
    url = f"http://127.0.0.1:{open_system(directory)}"
    client = httpx.Client(base_url=url, timeout=60, trust_env=False)
    wait_until_ready(client)
    yield Served(url, int(url.rpartition(":")[2]), None, client)
    client.close()
    stop()
    process.disconnect()


def open_system(directory: Path) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    plain = tiny_system(directory, partitions=2)
    write_tokenizer(plain.choice.source)
    words: dict[str, Any] = {
        "make_tokenizer": "actors.model_loading:make_tokenizer",
        "read_adapter": "actors.model_loading:read_adapter",
        "adapters": (),
    }
    system = replace(plain, choice=replace(plain.choice, **words))
    config = DoorConfig(MODEL, port=port, adapters=str(directory / "adapters"))
    start_system(replace(system, doors=(door_spec(system, config),)))
    return port


def wait_until_ready(client: httpx.Client) -> None:
    pause = threading.Event()
    for _ in range(600):
        try:
            if client.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        pause.wait(0.05)
    raise AssertionError("the door was never ready")


def body(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Once", "temperature": 1, "seed": 5, "ignore_eos": True, "max_tokens": LONG, **fields}


def text_of(door: Served, **fields: Any) -> str:
    found: str = door.post("/v1/completions", body(**fields)).json()["choices"][0]["text"]
    return found


def test_whole_answers_and_streams_say_the_same(door: Served) -> None:
    whole = door.chat(max_tokens=20).json()
    chunks = events_of(door.chat(max_tokens=20, stream=True, stream_options={"include_usage": True}).text)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == 20


def test_scores_and_several_prompts_come_through(door: Served) -> None:
    answer = door.complete(["Once", "Twice"], echo=True, logprobs=1, max_tokens=2).json()
    assert [choice["text"][:4] for choice in answer["choices"]] == ["Once", "Twic"]
    streamed = events_of(door.complete("Once", echo=True, logprobs=1, max_tokens=2, stream=True).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == answer["choices"][0]["text"]


def test_a_stream_does_not_notice_that_the_model_server_was_killed(door: Served) -> None:
    undisturbed, text, has_killed = text_of(door), "", False
    with door.client.stream("POST", "/v1/completions", json=body(stream=True)) as response:
        for number, line in enumerate(response.iter_lines()):
            if number == 30:
                has_killed = door.client.post("/v1/system/kill_engine").json()["killed"]
            if line.startswith("data: {"):
                text += events_of(line)[0]["choices"][0]["text"]
    assert has_killed and text == undisturbed
    wait_until_ready(door.client)
    tree = str(door.client.get("/v1/system").json()["tree"])
    assert "killed" in tree


def test_a_stream_does_not_notice_that_a_request_server_was_killed(door: Served) -> None:
    undisturbed, text = text_of(door), ""
    with door.client.stream("POST", "/v1/completions", json=body(stream=True)) as response:
        for number, line in enumerate(response.iter_lines()):
            if number == 30:
                for name in ("requests-0", "requests-1"):
                    pid = whereis(f"genserve.requests.{name}")
                    assert pid is not None
                    exit(pid, KILL)
            if line.startswith("data: {"):
                text += events_of(line)[0]["choices"][0]["text"]
    assert text == undisturbed


def test_a_stream_goes_on_at_the_next_door_when_this_one_is_killed(door: Served) -> None:
    undisturbed, last, text = text_of(door), "", ""
    headers = {"Idempotency-Key": "through-two-doors"}
    with (
        pytest.raises(httpx.TransportError),
        door.client.stream("POST", "/v1/completions", json=body(stream=True), headers=headers) as response,
    ):
        position = ""
        for number, line in enumerate(response.iter_lines()):
            if line.startswith("id: "):
                position = line.removeprefix("id: ")
            if line.startswith("data: {"):
                text, last = text + events_of(line)[0]["choices"][0]["text"], position
            if number == 30:
                pid = whereis("genserve.http")
                assert pid is not None
                exit(pid, KILL)
    wait_until_ready(door.client)
    again = door.post("/v1/completions", body(stream=True), headers={**headers, "Last-Event-ID": last})
    assert again.status_code == 200
    assert text + "".join(chunk["choices"][0]["text"] for chunk in events_of(again.text)) == undisturbed


def test_an_unknown_stream_cannot_be_continued(door: Served) -> None:
    headers = {"Last-Event-ID": "cmpl-" + "0" * 32 + ":1"}
    assert door.post("/v1/completions", body(stream=True), headers=headers).status_code == 404


def test_a_key_with_another_body_is_a_conflict(door: Served) -> None:
    headers = {"Idempotency-Key": "changed"}
    assert door.post("/v1/completions", body(max_tokens=3), headers=headers).status_code == 200
    assert door.post("/v1/completions", body(max_tokens=4), headers=headers).status_code == 409


def test_a_client_that_leaves_is_cancelled(door: Served) -> None:
    with door.client.stream("POST", "/v1/completions", json=body(stream=True)) as response:
        next(response.iter_lines())
    pause = threading.Event()
    for _ in range(100):
        system = door.client.get("/v1/system").json()
        if not system["running"] and system["stats"]["engine"]["used_blocks"] == 0:
            return
        pause.wait(0.1)
    raise AssertionError("its blocks were not freed")


def test_an_adapter_is_loaded_named_and_unloaded(door: Served) -> None:
    assert door.post("/v1/load_lora_adapter", {"lora_name": "voice"}).json()["parent"] == MODEL
    assert text_of(door, model="voice", max_tokens=10) != text_of(door, max_tokens=10)
    assert door.post("/v1/unload_lora_adapter", {"lora_name": "voice"}).status_code == 200
    assert door.complete("Once", model="voice").status_code == 404


def test_suspension_holds_everything_until_it_is_resumed(door: Served) -> None:
    door.client.post("/v1/system/suspend")
    assert door.client.get("/ready").status_code == 503
    door.client.post("/v1/system/resume")
    wait_until_ready(door.client)
    assert door.complete("Once").status_code == 200
