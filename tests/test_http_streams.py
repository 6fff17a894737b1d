"""Clients that leave, come back, repeat themselves or cancel; and engines that die meanwhile."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from starlette.requests import Request as HttpRequest

from actors.ledger_options import LedgerOptions
from deploy.http import edge, streaming
from deploy.http.backend import Terms
from deploy.http.completion_shapes import CompletionShapes
from deploy.http.job import Job
from deploy.http.logprobs import TokenTexts
from deploy.http.streaming import Streamed
from engine.request import Request, Sampling
from tests.http_world import (
    MODEL,
    ScriptedBackend,
    Served,
    events_of,
    id_events_of,
    served,
    tiny_backend,
    tiny_tokenizer,
)

LONG = 300  # tokens: some tenths of a second


@pytest.fixture(scope="module")
def tiny() -> Iterator[Served]:
    with served(tiny_backend()) as door:
        yield door


def body(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Once", "temperature": 0, "ignore_eos": True, **fields}


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


def running(door: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = door.client.get("/v1/system").json()["running"]
    return found


def used_blocks(door: Served) -> int:
    found: int = door.client.get("/v1/system").json()["stats"]["engine"]["used_blocks"]
    return found


def tasks_of(door: Served) -> float:
    lines = door.client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("genserve_door_tasks "))


def first_lines(response: httpx.Response, count: int) -> tuple[list[str], Iterator[str]]:
    lines = response.iter_lines()
    return [next(lines) for _ in range(count)], lines


# Leaving


def test_a_client_that_leaves_a_stream_is_cancelled_and_its_blocks_are_free(tiny: Served) -> None:
    with tiny.client.stream("POST", "/v1/completions", json=body(max_tokens=LONG, stream=True)) as response:
        first_lines(response, 4)
    wait_until(lambda: not running(tiny))
    wait_until(lambda: used_blocks(tiny) == 0)


def test_a_client_that_leaves_before_a_whole_answer_is_cancelled(tiny: Served) -> None:
    with pytest.raises(httpx.ReadTimeout):
        tiny.client.post("/v1/completions", json=body(max_tokens=LONG), timeout=0.05)
    wait_until(lambda: not running(tiny))
    wait_until(lambda: used_blocks(tiny) == 0)


def test_a_client_that_leaves_the_queue_is_cancelled() -> None:
    with served(tiny_backend(limits=LedgerOptions(max_choices_on_board=1))) as door:
        door.client.post("/v1/system/suspend")
        with socket.create_connection(("127.0.0.1", door.port)) as connection:
            content = b'{"prompt":"Once","max_tokens":5}'
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)
            wait_until(lambda: len(running(door)) == 1)
        wait_until(lambda: not running(door))
        door.client.post("/v1/system/resume")


def test_two_hundred_abrupt_departures_leave_nothing_behind(tiny: Served) -> None:
    tiny.complete()
    num_descriptors = len(os.listdir("/dev/fd"))
    num_tasks = tasks_of(tiny)
    content = b'{"prompt":"Once","max_tokens":300,"stream":true,"ignore_eos":true}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(content) + content
    for _ in range(200):
        with socket.create_connection(("127.0.0.1", tiny.port)) as connection:
            connection.sendall(request)
    wait_until(lambda: len(os.listdir("/dev/fd")) <= num_descriptors, 30)
    wait_until(lambda: "genserve_streams 0.0" in tiny.client.get("/metrics").text)
    wait_until(lambda: tasks_of(tiny) <= num_tasks)
    wait_until(lambda: not running(tiny))
    wait_until(lambda: used_blocks(tiny) == 0)


# Cancelling


def test_a_request_is_cancelled_by_its_id_and_its_reader_is_told(tiny: Served) -> None:
    with tiny.client.stream("POST", "/v1/completions", json=body(max_tokens=LONG, stream=True)) as response:
        _, rest = first_lines(response, 1)
        public_id = response.headers["x-request-id"]
        assert tiny.client.delete(f"/v1/requests/{public_id}").json()["cancelled"] is True
        told = [line for line in rest if line.startswith("data: ")]
    assert "request_cancelled" in told[-2]
    assert told[-1] == "data: [DONE]"


def test_cancelling_twice_or_when_it_is_done_changes_nothing(tiny: Served) -> None:
    public_id = tiny.complete().json()["id"]
    for _ in range(2):
        assert tiny.client.delete(f"/v1/requests/{public_id}").status_code == 200


@pytest.mark.parametrize("public_id", ["cmpl-" + "0" * 32, "nonsense", "..%2f..%2fetc%2fpasswd", "a" * 2000])
def test_an_id_that_nobody_has_cannot_be_cancelled(tiny: Served, public_id: str) -> None:
    assert tiny.client.delete(f"/v1/requests/{public_id}").status_code == 404


def test_a_cancelled_request_is_an_error_to_who_waits_for_the_whole(tiny: Served) -> None:
    answers: list[httpx.Response] = []
    fields = body(max_tokens=LONG)
    waiting = threading.Thread(target=lambda: answers.append(tiny.post("/v1/completions", fields)))
    waiting.start()
    wait_until(lambda: len(running(tiny)) == 1)
    tiny.client.delete(f"/v1/requests/{running(tiny)[0]['id']}")
    waiting.join(10)
    assert answers[0].status_code == 409
    assert answers[0].json()["error"]["code"] == "request_cancelled"


# Coming back


def test_a_stream_goes_on_behind_the_last_event_that_its_reader_has(tiny: Served) -> None:
    fields, headers = body(max_tokens=60, stream=True), {"Idempotency-Key": "come-back"}
    with tiny.client.stream("POST", "/v1/completions", json=fields, headers=headers) as response:
        lines, _ = first_lines(response, 12)
    had = [line for line in lines if line.startswith("data: ")]
    last = next(line for line in reversed(lines) if line.startswith("id: ")).removeprefix("id: ")
    again = tiny.post("/v1/completions", fields, headers={**headers, "Last-Event-ID": last})
    text = "".join(event["choices"][0]["text"] for event in [*events_of("\n\n".join(had)), *events_of(again.text)])
    whole = tiny.post("/v1/completions", body(max_tokens=60)).json()["choices"][0]["text"]
    assert text == whole


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_that_goes_on_knows_where_in_the_text_it_stands(tiny: Served, echo: bool) -> None:
    fields = body(prompt=["Grüße", "b"], n=2, seed=1, temperature=1, max_tokens=12, logprobs=1, echo=echo, stream=True)
    headers = {"Idempotency-Key": f"offsets-{echo}"}
    events = id_events_of(tiny.post("/v1/completions", fields, headers=headers).text)
    cut = next(number for number, (position, _) in enumerate(events) if sum(numbers_of(position)) >= 9)
    position = events[cut][0]
    assert position is not None
    again = tiny.post("/v1/completions", fields, headers={**headers, "Last-Event-ID": position})
    rest = events_of("\n\n".join(f"data: {data}" for _, data in events[cut + 1 :]))
    assert offsets_by_choice(events_of(again.text)) == offsets_by_choice(rest)
    assert texts_by_choice(events_of(again.text)) == texts_by_choice(rest)
    between = position.rpartition(":")[0] + ":9.9.0.0"  # of the second prompt it has nothing
    second = events_of(tiny.post("/v1/completions", fields, headers={"Last-Event-ID": between}).text)
    whole = events_of("\n\n".join(f"data: {data}" for _, data in events))
    for choice in (2, 3):
        assert offsets_by_choice(second)[choice] == offsets_by_choice(whole)[choice]
        assert texts_by_choice(second)[choice] == texts_by_choice(whole)[choice]
    beyond = position.rpartition(":")[0] + ":99.0.0.0"
    assert tiny.post("/v1/completions", fields, headers={"Last-Event-ID": beyond}).status_code == 416


def test_positions_of_several_choices_are_all_in_the_id(tiny: Served) -> None:
    fields = body(prompt=["a", "b"], n=2, seed=1, temperature=1, max_tokens=10, stream=True)
    headers = {"Idempotency-Key": "choices"}
    events = id_events_of(tiny.post("/v1/completions", fields, headers=headers).text)
    places = [place for place, (id, _) in enumerate(events) if id is not None]  # tokens that came together have one id
    place = places[len(places) // 2]
    cut = events[place][0]
    assert cut is not None and cut.count(".") == 3
    again = tiny.post("/v1/completions", fields, headers={**headers, "Last-Event-ID": cut})
    rest = events_of("\n\n".join(f"data: {data}" for _, data in events[place + 1 :]))
    assert texts_by_choice(events_of(again.text)) == texts_by_choice(rest)


def test_who_has_a_key_may_leave_and_the_answer_goes_on(tiny: Served) -> None:
    fields, headers = body(max_tokens=100, stream=True), {"Idempotency-Key": "patience"}
    with tiny.client.stream("POST", "/v1/completions", json=fields, headers=headers) as response:
        first_lines(response, 2)
    answer = tiny.post("/v1/completions", {**fields, "stream": False}, headers=headers).json()
    assert (
        answer["choices"][0]["text"] == tiny.post("/v1/completions", body(max_tokens=100)).json()["choices"][0]["text"]
    )


def test_who_does_not_come_back_in_time_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "LEASE_SECONDS", 0.2)
    with served(tiny_backend()) as door:
        door.client.post("/v1/system/suspend")
        fields, headers = body(max_tokens=100, stream=True), {"Idempotency-Key": "gone"}
        with door.client.stream("POST", "/v1/completions", json=fields, headers=headers) as response:
            assert response.headers["x-request-id"].startswith("cmpl-")
        assert len(running(door)) == 1
        wait_until(lambda: not running(door))
        door.client.post("/v1/system/resume")


@pytest.mark.parametrize(
    ("last", "status"),
    [
        ("nonsense", 400),
        ("cmpl-" + "0" * 32 + ":1", 400),
        ("cmpl-" + "0" * 32 + "~DIGEST:-1", 400),
        ("cmpl-" + "0" * 32 + "~DIGEST:1", 404),
        ("cmpl-" + "0" * 32 + "~DIGEST:1.2", 416),
        ("cmpl-" + "0" * 32 + "x2~DIGEST:1.2", 400),
        ("x" * 5000, 400),
    ],
)
def test_a_position_that_cannot_be_is_refused(tiny: Served, last: str, status: int) -> None:
    fields = body(stream=True)
    digest = positions_of(tiny.post("/v1/completions", fields))[0].partition("~")[2][:8]
    answer = tiny.post("/v1/completions", fields, headers={"Last-Event-ID": last.replace("DIGEST", digest)})
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == "Last-Event-ID"


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "the-same-body"}])
@pytest.mark.parametrize(
    "changed", [{"prompt": "Twice"}, {"prompt": [1]}, {"max_tokens": 7}, {"seed": 4}, {"n": 2}, {"priority": 1}]
)
def test_a_stream_does_not_go_on_for_another_body(tiny: Served, key: dict[str, str], changed: dict[str, Any]) -> None:
    fields = body(max_tokens=6, seed=3, stream=True)
    last = positions_of(tiny.post("/v1/completions", fields, headers=key))[0]
    answer = tiny.post("/v1/completions", fields | changed, headers={**key, "Last-Event-ID": last})
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("idempotency_conflict", "Last-Event-ID")
    assert error["message"] == "Last-Event-ID belongs to a request with another body"


def test_a_stream_goes_on_for_who_asks_the_same_in_other_words_and_has_no_key(tiny: Served) -> None:
    fields = body(max_tokens=6, seed=3, stream=True)
    events = id_events_of(tiny.post("/v1/completions", fields).text)
    same = dict(reversed((fields | {"top_p": 1, "n": None, "user": "me", "model": MODEL}).items()))
    for place, (last, _) in enumerate(events):
        if last is not None:
            again = tiny.post("/v1/completions", same, headers={"Last-Event-ID": last})
            assert again.status_code == 200
            rest = events_of("\n\n".join(f"data: {data}" for _, data in events[place + 1 :]))
            assert texts_by_choice(events_of(again.text)) == texts_by_choice(rest)


def test_another_door_knows_too_what_was_asked() -> None:
    backend, fields = ScriptedBackend(), body(stream=True)
    with served(backend) as first:
        last = positions_of(first.post("/v1/completions", fields))[3]
    with served(backend) as second:
        headers = {"Last-Event-ID": last}
        assert second.post("/v1/completions", fields, headers=headers).text.endswith("data: [DONE]\n\n")
        assert second.post("/v1/completions", fields | {"prompt": "Twice"}, headers=headers).status_code == 409


def test_a_position_beyond_the_end_is_out_of_range(tiny: Served) -> None:
    fields = body(max_tokens=3, stream=True)
    events = id_events_of(tiny.post("/v1/completions", fields).text)
    last = next(number for number, _ in reversed(events) if number is not None)
    beyond = last.rpartition(":")[0] + ":99"
    assert tiny.post("/v1/completions", fields, headers={"Last-Event-ID": beyond}).status_code == 416
    assert events_of(tiny.post("/v1/completions", fields, headers={"Last-Event-ID": last}).text) == []


# Repeating


def test_the_same_key_is_the_same_generation(tiny: Served) -> None:
    fields, headers = body(temperature=1.5, max_tokens=20), {"Idempotency-Key": "once"}
    first, second = (tiny.post("/v1/completions", fields, headers=headers).json() for _ in range(2))
    assert first["id"] == second["id"]
    assert first["choices"] == second["choices"]


def test_the_same_key_at_the_same_time_is_one_generation() -> None:
    with served(ScriptedBackend()) as door:
        headers = {"Idempotency-Key": "twins"}
        ids = {door.chat(**{}).json()["id"] for _ in range(2)}
        same = [door.post("/v1/completions", body(), headers=headers).json()["id"] for _ in range(2)]
    assert len(ids) == 2 and len(set(same)) == 1


def test_a_key_with_another_body_is_a_conflict(tiny: Served) -> None:
    headers = {"Idempotency-Key": "changed"}
    assert tiny.post("/v1/completions", body(max_tokens=3), headers=headers).status_code == 200
    answer = tiny.post("/v1/completions", body(max_tokens=4), headers=headers)
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("idempotency_conflict", "Idempotency-Key")
    assert error["message"] == "the Idempotency-Key belongs to a request with another body"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_conflict_leaves_the_request_alone_that_has_the_key(is_stream: bool) -> None:
    headers = {"Idempotency-Key": "running"}
    with served(tiny_backend()) as door, ThreadPoolExecutor() as other:
        door.client.post("/v1/system/suspend")
        first = other.submit(door.post, "/v1/completions", body(max_tokens=8), headers=headers)
        wait_until(lambda: len(running(door)) == 1)
        conflict = door.post("/v1/completions", body(max_tokens=9, stream=is_stream), headers=headers)
        assert conflict.status_code == 409
        door.client.post("/v1/system/resume")
        answer = first.result().json()
    assert answer["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
def test_a_key_must_be_plain(tiny: Served, key: str) -> None:
    assert tiny.post("/v1/completions", body(), headers={"Idempotency-Key": key}).status_code == 400


# Dying


def test_a_stream_does_not_notice_that_the_engine_was_killed(tiny: Served) -> None:
    undisturbed = tiny.post("/v1/completions", body(max_tokens=LONG, temperature=1, seed=5)).json()["choices"][0][
        "text"
    ]
    text, kills = "", 0
    fields = body(max_tokens=LONG, temperature=1, seed=5, stream=True)
    with tiny.client.stream("POST", "/v1/completions", json=fields) as response:
        for number, line in enumerate(response.iter_lines()):
            if number in (40, 160):
                kills += tiny.client.post("/v1/system/kill_engine").json()["killed"]
            if line.startswith("data: {"):
                text += events_of(line)[0]["choices"][0]["text"]
    assert kills == 2
    assert text == undisturbed
    system = tiny.client.get("/v1/system").json()
    assert system["tree"]["children"][0]["restarts"] >= 2
    assert system["tree"]["children"][0]["last_reason"] == "killed"


def test_what_waits_survives_the_engine_too(tiny: Served) -> None:
    expected = tiny.post("/v1/completions", body(max_tokens=20)).json()["choices"][0]["text"]
    answers: list[httpx.Response] = []
    tiny.client.post("/v1/system/suspend")
    fields = body(max_tokens=20)
    waiting = threading.Thread(target=lambda: answers.append(tiny.post("/v1/completions", fields)))
    waiting.start()
    wait_until(lambda: len(running(tiny)) == 1)
    tiny.client.post("/v1/system/kill_engine")
    tiny.client.post("/v1/system/resume")
    waiting.join(20)
    assert answers[0].json()["choices"][0]["text"] == expected


def test_suspension_holds_everything_and_is_told(tiny: Served) -> None:
    tiny.client.post("/v1/system/suspend")
    ready = tiny.client.get("/ready")
    tiny.client.post("/v1/system/resume")
    assert ready.status_code == 503
    assert "suspended" in ready.json()["reason"]
    assert tiny.client.get("/ready").status_code == 200


def test_a_deadline_that_passes_ends_the_request(tiny: Served) -> None:
    tiny.client.post("/v1/system/suspend")
    answer = tiny.post("/v1/completions", body(deadline_ms=50))
    tiny.client.post("/v1/system/resume")
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "deadline_passed"


def test_a_deadline_that_passes_in_a_stream_is_told_there(tiny: Served) -> None:
    tiny.client.post("/v1/system/suspend")
    answer = tiny.post("/v1/completions", body(deadline_ms=50, stream=True))
    tiny.client.post("/v1/system/resume")
    assert answer.status_code == 200
    error = events_of(answer.text)[-1]["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "deadline_passed")


# Waiting


def test_a_stream_that_waits_says_that_it_lives(tiny: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HEARTBEAT_SECONDS", 0.05)
    tiny.client.post("/v1/system/suspend")
    with tiny.client.stream("POST", "/v1/completions", json=body(max_tokens=2, stream=True)) as response:
        lines = response.iter_lines()
        assert next(lines) == ": waiting"
        tiny.client.post("/v1/system/resume")
        assert "data: [DONE]" in list(lines)


def test_a_reader_that_takes_nothing_for_too_long_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(streaming, "STALL_SECONDS", 0.03)
    backend = ScriptedBackend()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def run() -> None:
        request = Request("0" * 32 + ".0", (1, 2), Sampling(max_tokens=5))
        job = Job("cmpl-" + "0" * 32, "tiny", 0, (request,), Terms())
        door = edge.Edge(backend, tiny_tokenizer())
        shapes = CompletionShapes(job, "fp", TokenTexts(tiny_tokenizer()), None, False, None)
        http = HttpRequest({"type": "http", "headers": []})
        answer = Streamed(door, http, job, await streaming.opened(door, job, None), shapes, None)
        await asyncio.wait_for(answer({"type": "http"}, receive, send), 5)
        door.encoders.shutdown()

    asyncio.run(run())
    assert backend.cancelled == ["0" * 32 + ".0"]


def texts_by_choice(chunks: list[dict[str, Any]]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


def offsets_by_choice(chunks: list[dict[str, Any]]) -> dict[int, list[int]]:
    offsets: dict[int, list[int]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            offsets.setdefault(choice["index"], []).extend((choice["logprobs"] or {"text_offset": []})["text_offset"])
    return offsets


def positions_of(answer: httpx.Response) -> list[str]:
    return [position for position, _ in id_events_of(answer.text) if position is not None]


def numbers_of(position: str | None) -> list[int]:
    return [] if position is None else list(map(int, position.rpartition(":")[2].split(".")))
