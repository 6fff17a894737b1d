"""Any HTTP client."""

import json
import time

import httpx
import msgpack

from benchmarks.checks.table import SECONDS, Target, feature, status_of


@feature("any HTTP client", "health that is 200 while the model is busy")
def _(target: Target) -> None:
    assert status_of(target, "/health").status_code == 200


@feature("any HTTP client", "metrics for Prometheus")
def _(target: Target) -> None:
    assert "# TYPE" in status_of(target, "/metrics").text


@feature("any HTTP client", "tokenize and detokenize")
def _(target: Target) -> None:
    tokens = status_of(target, "/tokenize", {"prompt": "Hi there"}).json()["tokens"]
    assert status_of(target, "/detokenize", {"tokens": tokens}).json()["prompt"] == "Hi there"


@feature("any HTTP client", "the same Idempotency-Key is the same generation")
def _(target: Target) -> None:
    body = {"model": target.model, "prompt": "Once", "max_tokens": 8, "temperature": 1}
    headers = {"Idempotency-Key": f"key-{time.time()}"}
    first, second = (status_of(target, "/v1/completions", body, headers=headers).json() for _ in range(2))
    assert first["id"] == second["id"] and first["choices"] == second["choices"]


@feature("any HTTP client", "a stream goes on behind Last-Event-ID")
def _(target: Target) -> None:
    body = {"model": target.model, "prompt": "Once", "max_tokens": 64, "temperature": 0, "stream": True}
    whole = status_of(target, "/v1/completions", body, headers={"Idempotency-Key": f"key-{time.time()}"}).text
    first = whole.split("\n\n")[0]
    assert first.startswith("id: "), "events have no ids"
    last = first.splitlines()[0].removeprefix("id: ")
    again = status_of(target, "/v1/completions", body, headers={"Last-Event-ID": last}).text
    assert said(whole.removeprefix(first)) == said(again) != ""


@feature("any HTTP client", "bodies and answers in msgpack")
def _(target: Target) -> None:
    body = msgpack.packb({"model": target.model, "prompt": "Once", "max_tokens": 2})
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    answer = httpx.post(f"{target.base}/completions", content=body, headers=headers, timeout=SECONDS, trust_env=False)
    assert msgpack.unpackb(answer.content)["choices"]


@feature("any HTTP client", "a broken body is answered with 400")
def _(target: Target) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{target.base}/completions", content=b"{", headers=headers, timeout=SECONDS, trust_env=False)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


@feature("any HTTP client", "another site's page gets no permission")
def _(target: Target) -> None:
    body, headers = {"prompt": "Once", "max_tokens": 1}, {"Origin": "https://elsewhere.example"}
    answer = status_of(target, "/v1/completions", body, headers=headers)
    assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


def said(events: str) -> str:
    """The text of server-sent events."""
    payloads = [line.removeprefix("data: ") for line in events.split("\n") if line.startswith("data: {")]
    return "".join(choice["text"] for payload in payloads for choice in json.loads(payload)["choices"])
