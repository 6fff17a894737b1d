"""The door over real processes on Ray: what was promised inline holds when processes are really killed."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from actors import sys
from actors.exits import KILL
from actors.model_choice import function_at
from actors.node import exit, whereis
from actors.system import start_system, stop
from actors.system_config import SystemConfig
from deploy.http.actor_backend import ActorBackend
from deploy.http.door_config import DoorConfig, door_spec
from deploy.http.keys import Keys
from loaders.adapters import save_adapter
from loaders.checkpoint import load_model
from tests.browser import Browser, browsing, is_there
from tests.engines import random_adapter, tiny_model
from tests.http_world import MODEL, Served, events_of, id_events_of, served
from tests.serving import tiny_system
from tests.tiny_tokenizer import write_tokenizer

pytestmark = pytest.mark.ray
LONG = 200
ALICE, BOB = ({"Authorization": f"Bearer {key}"} for key in ("sk-alice-0001", "sk-bob-00002"))
ENTER, ESCAPE = "\ue007", "\ue00c"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("system") / "adapters"
    save_adapter(folder / "voice", random_adapter(tiny_model(), seed=3))
    return folder


@pytest.fixture(scope="module")
def system(ray: None, adapters: Path) -> Iterator[tuple[SystemConfig, int]]:
    yield open_system(adapters.parent)
    stop()


@pytest.fixture(scope="module")
def door(system: tuple[SystemConfig, int]) -> Iterator[Served]:
    _, port = system
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=60, trust_env=False, verify=False) as client:
        wait_until_ready(client)
        yield Served(url, port, None, client)


@pytest.fixture(scope="module")
def locked(system: tuple[SystemConfig, int], door: Served) -> Iterator[Served]:
    """A second door to the same system, which wants keys. It stands in this process."""
    config, _ = system
    backend = ActorBackend(config, MODEL, function_at(config.choice.make_tokenizer)(config.choice))
    with served(backend, Keys({"alice": "sk-alice-0001", "bob": "sk-bob-00002"})) as opened:
        wait_until(lambda: opened.client.get("/ready", headers=ALICE).status_code == 200)
        yield opened


def open_system(directory: Path) -> tuple[SystemConfig, int]:
    """What is served, and at which port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    plain = tiny_system(directory, partitions=2)
    write_tokenizer(plain.choice.source)
    words: dict[str, Any] = {
        "make_tokenizer": "actors.tokenizer_loading:make_tokenizer",
        "read_adapter": "actors.model_loading:read_adapter",
        "adapters": (),
    }
    system = replace(plain, choice=replace(plain.choice, **words))
    config = DoorConfig(MODEL, port=port, adapters=str(directory / "adapters"))
    start_system(replace(system, doors=(door_spec(system, config),)))
    return system, port


def wait_until_ready(client: httpx.Client) -> None:
    def is_ready() -> bool:
        try:
            return client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(is_ready)


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(1200):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("it did not happen")


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


def test_the_fingerprint_is_of_what_the_model_is_and_not_of_where(
    door: Served, system: tuple[SystemConfig, int]
) -> None:
    config, _ = system
    wanted = f"fp_{load_model(config.choice.source).fingerprint[:16]}"
    assert door.chat(max_tokens=1).json()["system_fingerprint"] == wanted


def test_scores_and_several_prompts_come_through(door: Served) -> None:
    answer = door.complete(["Once", "Twice"], echo=True, logprobs=1, max_tokens=2).json()
    assert [choice["text"][:4] for choice in answer["choices"]] == ["Once", "Twic"]
    streamed = events_of(door.complete("Once", echo=True, logprobs=1, max_tokens=2, stream=True).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == answer["choices"][0]["text"]


def test_scores_do_not_hold_a_stream_until_its_end(door: Served) -> None:
    words: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": LONG, "ignore_eos": True}
    (whole,) = door.complete("Once", **words).json()["choices"]
    parts = [chunk["choices"][0] for chunk in events_of(door.complete("Once", **words, stream=True).text)]
    assert len(parts) > 10
    assert "".join(part["text"] for part in parts) == whole["text"]
    scores = [score for part in parts if part["logprobs"] for score in part["logprobs"]["token_logprobs"]]
    assert scores == whole["logprobs"]["token_logprobs"]


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
    # The next one may be ready before the door has looked at the tree again.
    wait_until(lambda: "killed" in str(door.client.get("/v1/system").json()["tree"]))


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


def test_a_stream_that_goes_on_knows_where_in_the_text_it_stands(door: Served) -> None:
    fields, headers = body(max_tokens=12, logprobs=0, echo=True, stream=True), {"Idempotency-Key": "offsets"}
    (whole,) = door.post("/v1/completions", {**fields, "stream": False}, headers=headers).json()["choices"]
    (first, _), *_ = id_events_of(door.post("/v1/completions", fields, headers=headers).text)
    stream, _, _ = str(first).partition(":")
    for position, status in ((f"{stream}:5", 200), (f"{stream}:99", 416)):
        again = door.post("/v1/completions", fields, headers={**headers, "Last-Event-ID": position})
        assert again.status_code == status
        if status == 200:
            parts = [chunk["choices"][0]["logprobs"] for chunk in events_of(again.text)]
            offsets = [offset for part in parts if part for offset in part["text_offset"]]
            assert offsets == whole["logprobs"]["text_offset"][len("Once") + 5 :]


def test_an_unknown_stream_cannot_be_continued(door: Served) -> None:
    (first, _), *_ = id_events_of(door.post("/v1/completions", body(max_tokens=2, stream=True)).text)
    asked = str(first).partition("~")[2][:8]
    headers = {"Last-Event-ID": "cmpl-" + "0" * 32 + f"~{asked}:1"}
    assert door.post("/v1/completions", body(max_tokens=2, stream=True), headers=headers).status_code == 404
    assert door.post("/v1/completions", body(max_tokens=3, stream=True), headers=headers).status_code == 409


def test_a_deadline_that_passes_in_a_stream_is_told_as_that_of_a_whole_answer_is(door: Served) -> None:
    door.client.post("/v1/system/suspend")
    answer = door.post("/v1/completions", body(deadline_ms=300, stream=True, n=2))
    door.client.post("/v1/system/resume")
    wait_until_ready(door.client)
    error = events_of(answer.text)[-1]["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_passed")


def test_a_key_with_another_body_is_a_conflict(door: Served) -> None:
    headers = {"Idempotency-Key": "changed"}
    assert door.post("/v1/completions", body(max_tokens=3), headers=headers).status_code == 200
    assert door.post("/v1/completions", body(max_tokens=4), headers=headers).status_code == 409


def test_the_same_key_at_the_same_time_is_one_generation_whoever_reads_it_and_how(door: Served) -> None:
    headers = {"Idempotency-Key": "read-by-many"}
    with ThreadPoolExecutor(6) as threads:
        answers = list(
            threads.map(
                lambda number: door.post("/v1/completions", body(seed=None, stream=number % 2 == 1), headers=headers),
                range(6),
            )
        )
    whole = [answer.json()["choices"][0]["text"] for answer in answers[::2]]
    streamed = ["".join(c["choices"][0]["text"] for c in events_of(answer.text)) for answer in answers[1::2]]
    assert len({*whole, *streamed}) == 1 and whole[0]


def test_a_client_that_leaves_is_cancelled(door: Served) -> None:
    with door.client.stream("POST", "/v1/completions", json=body(stream=True)) as response:
        next(response.iter_lines())

    def is_free() -> bool:
        system = door.client.get("/v1/system").json()
        return not system["running"] and system["stats"]["engine"]["used_blocks"] == 0

    wait_until(is_free)


def test_who_watches_sees_whole_answers_and_left_streams_being_made(door: Served) -> None:
    def progress() -> list[bool]:
        rows = door.client.get("/v1/system").json()["running"]
        return [row["state"] == "running" and row["generated_tokens"] > 0 for row in rows]

    progress()  # from now on it is looked at often
    fields: dict[str, Any] = body(max_tokens=2 * LONG, n=4)  # it must last longer than from one look to the next
    with ThreadPoolExecutor(1) as threads:
        whole = threads.submit(door.post, "/v1/completions", fields)
        wait_until(lambda: progress() == [True])
        assert whole.result().status_code == 200
    wait_until(lambda: progress() == [])
    headers = {"Idempotency-Key": "watched"}
    fields |= {"stream": True}
    with door.client.stream("POST", "/v1/completions", json=fields, headers=headers) as response:
        next(response.iter_lines())
        public_id = response.headers["x-request-id"]
    wait_until(lambda: progress() == [True])
    assert door.client.delete(f"/v1/requests/{public_id}").status_code == 200
    wait_until(lambda: progress() == [])


def engine_of(door: Served) -> dict[str, int]:
    found: dict[str, int] = door.client.get("/v1/system").json()["stats"]["engine"]
    return found


def is_idle(door: Served) -> bool:
    system = door.client.get("/v1/system").json()
    return not system["running"] and system["stats"]["engine"]["used_blocks"] == 0


def test_clients_that_leave_while_their_prompts_are_read_cost_nothing_more(door: Served) -> None:
    wait_until(lambda: is_idle(door))
    before, count, length = engine_of(door)["prompt_tokens"], 24, 400
    connections = []
    for number in range(count):
        content = f'{{"prompt":"{number:03}{"x" * (length - 3)}","max_tokens":9,"ignore_eos":true}}'.encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connections.append(socket.create_connection(("127.0.0.1", door.port)))
        connections[-1].sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)
    wait_until(lambda: engine_of(door)["num_running"] > 0)
    for connection in connections:
        connection.close()
    wait_until(lambda: is_idle(door))
    assert engine_of(door)["prompt_tokens"] - before < count * length


def test_a_whole_answer_and_a_stream_are_cancelled_by_their_ids(door: Served) -> None:
    with ThreadPoolExecutor(1) as threads:
        whole = threads.submit(door.post, "/v1/completions", body(max_tokens=400))
        wait_until(lambda: len(door.client.get("/v1/system").json()["running"]) == 1)
        (row,) = door.client.get("/v1/system").json()["running"]
        for _ in range(2):
            assert door.client.delete(f"/v1/requests/{row['id']}").json()["cancelled"] is True
        assert whole.result().status_code == 409
        assert whole.result().json()["error"]["code"] == "request_cancelled"
    with door.client.stream("POST", "/v1/completions", json=body(max_tokens=400, stream=True)) as response:
        lines = response.iter_lines()
        next(lines)
        assert door.client.delete(f"/v1/requests/{response.headers['x-request-id']}").status_code == 200
        told = [line for line in lines if line.startswith("data: ")]
    assert "request_cancelled" in told[-2] and told[-1] == "data: [DONE]"
    assert door.client.delete("/v1/requests/cmpl-" + "0" * 32).status_code == 404
    wait_until(lambda: is_idle(door))


def test_what_one_key_had_read_is_not_found_by_another(locked: Served) -> None:
    fields = {"prompt": "A prompt that both of them send, long enough for some blocks of the cache", "max_tokens": 2}

    def cached(who: dict[str, str]) -> int:
        usage = locked.post("/v1/completions", fields, headers=who).json()["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    cached(ALICE)
    assert cached(ALICE) > 0
    assert cached(BOB) == 0


def test_a_key_that_asks_much_does_not_keep_another_waiting(locked: Served) -> None:
    def ask(number: int, who: dict[str, str], n: int) -> int:
        fields = body(prompt=f"{number}", n=n, max_tokens=60)
        return locked.post("/v1/completions", fields, headers=who).status_code

    with ThreadPoolExecutor(17) as threads:
        flood = [threads.submit(ask, number, ALICE, 16) for number in range(16)]  # four times what is answered at once
        wait_until(lambda: len(locked.client.get("/v1/system", headers=ALICE).json()["running"]) == 16)
        assert threads.submit(ask, 99, BOB, 1).result() == 200
        assert sum(answer.done() for answer in flood) <= 8
        rows = locked.client.get("/v1/system", headers=ALICE).json()["running"]
        for public_id in [row["id"] for row in rows if row["tenant"] == "alice"]:
            assert locked.client.delete(f"/v1/requests/{public_id}", headers=BOB).status_code == 404
            assert locked.client.delete(f"/v1/requests/{public_id}", headers=ALICE).status_code == 200
        assert {answer.result() for answer in flood} <= {200, 409}


def test_a_stream_whose_adapter_was_changed_is_refused_when_it_must_begin_anew(door: Served, adapters: Path) -> None:
    save_adapter(adapters / "changing", random_adapter(tiny_model(), seed=4))
    assert door.post("/v1/load_lora_adapter", {"lora_name": "changing"}).status_code == 200
    fields, headers = body(model="changing", max_tokens=400, stream=True), {"Idempotency-Key": "changing"}
    with door.client.stream("POST", "/v1/completions", json=fields, headers=headers) as response:
        last = next(line for line in response.iter_lines() if line.startswith("id: ")).removeprefix("id: ")
    save_adapter(adapters / "changing", random_adapter(tiny_model(), seed=5))
    door.client.post("/v1/system/kill_engine")
    assert text_of(door, max_tokens=5)  # the next engine is there, and others are answered
    again = door.post("/v1/completions", fields, headers={**headers, "Last-Event-ID": last})
    assert again.status_code == 503 or events_of(again.text)[-1]["error"]["type"] == "service_unavailable"
    assert door.complete("Once", model="changing").status_code == 503
    assert door.post("/v1/load_lora_adapter", {"lora_name": "changing"}).status_code == 200
    assert door.complete("Once", model="changing").status_code == 200
    assert door.post("/v1/unload_lora_adapter", {"lora_name": "changing"}).status_code == 200
    shutil.rmtree(adapters / "changing")  # the page's person loads the first that is there


def test_an_adapter_is_loaded_named_and_unloaded(door: Served) -> None:
    assert door.post("/v1/load_lora_adapter", {"lora_name": "voice"}).json()["parent"] == MODEL
    assert text_of(door, model="voice", max_tokens=10) != text_of(door, max_tokens=10)
    assert door.post("/v1/unload_lora_adapter", {"lora_name": "voice"}).status_code == 200
    assert door.complete("Once", model="voice").status_code == 404


def test_an_adapter_is_loaded_when_every_request_server_knows_it(door: Served) -> None:
    slow = "genserve.requests.requests-1"
    with ThreadPoolExecutor(1) as threads:
        sys.suspend(slow)
        loading = threads.submit(door.post, "/v1/load_lora_adapter", {"lora_name": "voice"})
        time.sleep(3)  # the door waits a second for who answers nothing, and then has looked
        is_early = loading.done()
        sys.resume(slow)
        assert loading.result().status_code == 200 and not is_early
    unknown = [door.complete("Once", model="voice", max_tokens=1).status_code != 200 for _ in range(8)]
    assert not any(unknown)
    assert door.post("/v1/unload_lora_adapter", {"lora_name": "voice"}).status_code == 200
    unknown = [door.complete("Once", model="voice").status_code == 404 for _ in range(8)]
    assert all(unknown)


def test_an_adapter_survives_the_model_server(door: Served) -> None:
    assert door.post("/v1/load_lora_adapter", {"lora_name": "lasting", "lora_path": "voice"}).status_code == 200
    before = text_of(door, model="lasting", max_tokens=10)
    door.client.post("/v1/system/kill_engine")
    assert text_of(door, model="lasting", max_tokens=10) == before
    assert door.post("/v1/unload_lora_adapter", {"lora_name": "lasting"}).status_code == 200


def test_metrics_count_deaths_by_reason(door: Served) -> None:
    door.client.post("/v1/system/kill_engine")
    wait_until(lambda: 'genserve_restarts_total{reason="killed"}' in door.client.get("/metrics").text)
    wait_until_ready(door.client)


def test_request_servers_that_do_not_answer_are_told_and_waited_for(door: Served) -> None:
    partitions = [f"genserve.requests.requests-{number}" for number in range(2)]
    with ThreadPoolExecutor(40) as threads:
        for name in partitions:
            sys.suspend(name)
        waiting = [threads.submit(text_of, door, max_tokens=3) for _ in range(40)]  # more than the door has threads
        wait_until(lambda: "does not answer" in str(door.client.get("/ready").json()["reason"]))
        assert door.client.get("/health").status_code == 200
        for name in partitions:
            sys.resume(name)
        assert len({answer.result() for answer in waiting}) == 1


def test_suspension_holds_everything_until_it_is_resumed(door: Served) -> None:
    before = door.client.get("/v1/system").json()["tree"]
    door.client.post("/v1/system/suspend")
    threading.Event().wait(4.0)  # longer than the watchdog's patience
    assert door.client.get("/ready").status_code == 503
    door.client.post("/v1/system/resume")
    wait_until_ready(door.client)
    assert door.complete("Once").status_code == 200
    threading.Event().wait(1.0)
    assert door.client.get("/v1/system").json()["tree"] == before


# The page, before the same processes


@pytest.fixture(scope="module")
def page(door: Served) -> Iterator[Browser]:
    if not is_there():
        pytest.skip("needs Debian's chromium and chromium-driver")
    wait_until_ready(door.client)
    with browsing() as browser:
        browser.go(f"{door.url}/")
        browser.wait("document.querySelector('#status .label').textContent === 'tiny'")
        yield browser


def show(page: Browser, view: str) -> None:
    page.run("location.hash = arguments[0]", view)
    page.wait(f"!document.querySelector('#{view}').hidden")


def test_a_person_writes_and_chats(page: Browser) -> None:
    page.fill("#write input[name=count]", "2")
    page.fill("#write input[name=tokens]", "12")
    page.click("#write button.primary")
    page.wait("[...document.querySelectorAll('#write .card .text')].filter(text => text.textContent).length === 2")
    page.wait("!document.querySelector('#write .writing')")
    show(page, "chat")
    page.fill("#chat textarea", "Hello")
    page.press(ENTER)
    page.wait("document.querySelector('.turn.assistant .text')?.textContent")
    page.press(ESCAPE)
    page.wait("!document.querySelector('#chat .writing')")


def test_a_person_loads_an_adapter(page: Browser) -> None:
    show(page, "live")
    page.wait("document.querySelectorAll('form.load option').length")
    page.click("form.load button")
    page.wait("document.querySelector('.adapters').textContent.includes('voice')")
    show(page, "compare")
    page.wait("document.querySelectorAll('#compare .boxes input').length === 2")


# Inside the page: from here, the click could come when a text is at its end, as a busy machine is slow to look.
SUSPEND_IN_THE_MIDDLE = """
  const text = document.querySelector('.demo');
  new MutationObserver((_, watch) => {
    if (text.textContent.length <= 20) return;
    watch.disconnect();
    document.querySelector('#live button[name=suspend]').click();
  }).observe(text, { childList: true, characterData: true, subtree: true });
"""


def test_a_person_kills_the_engine_in_the_middle_of_a_text_and_the_text_goes_on(page: Browser, door: Served) -> None:
    show(page, "live")
    page.wait("document.querySelector('.tree .dot.running')")
    deaths = page.run("return document.querySelector('.tree').textContent")
    page.run(SUSPEND_IN_THE_MIDDLE)  # so it is not at its end when the engine is killed
    page.click("#live button[name=start]")
    page.wait("document.querySelector('#live button[name=suspend]').textContent === 'Resume'")
    assert page.text("#live button[name=start]") == "Stop the text"
    page.click("#live button[name=kill]")
    page.wait("document.querySelector('#live button[name=start]').textContent === 'Start a text'")
    page.wait("document.querySelector('.tree').textContent.includes('killed')")
    assert page.text(".tree") != deaths
    limit = door.client.get("/v1/system").json()["model"]["capacity"]["max_context"]
    story = {
        "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse keeper and the sea."}],
        **{"max_tokens": min(1500, limit // 2), "temperature": 0.7, "seed": 1, "ignore_eos": True},
    }
    undisturbed = door.post("/v1/chat/completions", story).json()["choices"][0]["message"]["content"]
    assert page.text(".demo") == undisturbed
