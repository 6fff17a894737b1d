"""What a client expects of a server, each expectation a check that raises where it is not met. Starts no server."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgpack

from engine.event import PromptScored
from engine.request import Request, Sampling

MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
SECONDS = 30


@dataclass(frozen=True, slots=True)
class Target:
    """A server that is asked."""

    name: str
    url: str
    model: str
    checkpoint: Path

    @property
    def base(self) -> str:
        return f"{self.url}/v1"


Check = Callable[[Target], None]
CHECKS: list[tuple[str, str, Check]] = []


def feature(client: str, what: str) -> Callable[[Check], Check]:
    """Enter a check in the table."""

    def enter(check: Check) -> Check:
        CHECKS.append((client, what, check))
        return check

    return enter


def openai(target: Target, **more: Any) -> Any:
    import openai

    words: dict[str, Any] = {"base_url": target.base, "api_key": "none", "max_retries": 0, "timeout": SECONDS}
    return openai.OpenAI(**words, **{"_strict_response_validation": True, **more})


def chat(target: Target, **words: Any) -> Any:
    fields = {"model": target.model, "messages": MESSAGES, "max_tokens": 8, "temperature": 0, **words}
    return openai(target).chat.completions.create(**fields)


def complete(target: Target, strict: bool = True, **words: Any) -> Any:
    fields = {"model": target.model, "prompt": "Once", "max_tokens": 8, "temperature": 0, **words}
    return openai(target, _strict_response_validation=strict).completions.create(**fields)


def status_of(target: Target, path: str, content: Any = None, **more: Any) -> httpx.Response:
    method = "GET" if content is None else "POST"
    return httpx.request(method, f"{target.url}{path}", json=content, timeout=SECONDS, trust_env=False, **more)


# openai


@feature("openai, strict", "chat")
def _(target: Target) -> None:
    assert chat(target).usage.completion_tokens > 0


@feature("openai, strict", "chat, streamed, with usage")
def _(target: Target) -> None:
    chunks = list(chat(target, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == chat(target).choices[0].message.content
    assert chunks[-1].usage.completion_tokens > 0


@feature("openai, strict", "chat, async, eight at once")
def _(target: Target) -> None:
    import openai as package

    async def ask() -> list[Any]:
        async with package.AsyncOpenAI(
            base_url=target.base, api_key="none", timeout=SECONDS, _strict_response_validation=True
        ) as client:
            words: dict[str, Any] = {"model": target.model, "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
            return await asyncio.gather(*(client.chat.completions.create(**words) for _ in range(8)))

    assert len({answer.choices[0].message.content for answer in asyncio.run(ask())}) == 1


@feature("openai, strict", "n = 3")
def _(target: Target) -> None:
    assert len(chat(target, n=3, temperature=1).choices) == 3


@feature("openai, strict", "seed makes the text again")
def _(target: Target) -> None:
    first, second = (chat(target, seed=3, temperature=1).choices[0].message.content for _ in range(2))
    assert first == second


@feature("openai, strict", "max_completion_tokens")
def _(target: Target) -> None:
    client = openai(target)
    answer = client.chat.completions.create(
        model=target.model, messages=MESSAGES, max_completion_tokens=3, temperature=0
    )
    assert answer.usage.completion_tokens <= 3


@feature("openai, strict", "logprobs of the chosen tokens, with bytes")
def _(target: Target) -> None:
    answer = chat(target, logprobs=True, top_logprobs=2)
    records = answer.choices[0].logprobs.content
    assert len(records) == answer.usage.completion_tokens and all(record.bytes for record in records)
    assert all(record.logprob == max(top.logprob for top in record.top_logprobs) for record in records)


@feature("openai, strict", "logprobs, streamed")
def _(target: Target) -> None:
    chunks = list(chat(target, stream=True, logprobs=True))
    assert sum(len(choice.logprobs.content) for chunk in chunks for choice in chunk.choices if choice.logprobs) >= 8


@feature("openai, strict", "logit_bias, penalties")
def _(target: Target) -> None:
    assert chat(target, logit_bias={"88": 100}, max_tokens=3).choices[0].message.content == "XXX"
    assert chat(target, presence_penalty=0.5, frequency_penalty=0.5).choices


@feature("openai, strict", "a stop string that spans tokens")
def _(target: Target) -> None:
    (choice,) = chat(target, logit_bias={"88": 100}, max_tokens=8, stop=["XXX"]).choices
    assert (choice.message.content, choice.finish_reason) == ("", "stop")


@feature("openai, strict", "completions: text, list, token ids")
def _(target: Target) -> None:
    assert len(complete(target, prompt=["Once", "Twice"]).choices) == 2
    text, ids = complete(target).choices[0].text, complete(target, prompt=list(b"Once")).choices[0].text
    assert text == ids


@feature("openai", "completions: echo with logprobs")
def _(target: Target) -> None:
    (choice,) = complete(target, strict=False, echo=True, logprobs=1, max_tokens=0).choices
    assert choice.text == "Once" and len(choice.logprobs.token_logprobs) == 4


@feature("openai", "completions, streamed")
def _(target: Target) -> None:
    text = "".join(chunk.choices[0].text for chunk in complete(target, strict=False, stream=True) if chunk.choices)
    assert text == complete(target, strict=False).choices[0].text


@feature("openai, strict", "models: list and retrieve")
def _(target: Target) -> None:
    client = openai(target)
    first = next(iter(client.models.list()))
    assert client.models.retrieve(first.id).id == first.id


@feature("openai, strict", "unknown model is NotFoundError, model_not_found")
def _(target: Target) -> None:
    import openai as package

    try:
        chat(target, model="nobody")
    except package.NotFoundError as refused:
        assert refused.code == "model_not_found"
        return
    raise AssertionError("it was answered")


@feature("openai, strict", "bad value is BadRequestError and names the field")
def _(target: Target) -> None:
    import openai as package

    try:
        chat(target, temperature=-1)
    except package.BadRequestError as refused:
        assert refused.param == "temperature"
        return
    raise AssertionError("it was answered")


@feature("openai, strict", "what is not supported is refused, not dropped")
def _(target: Target) -> None:
    import openai as package

    try:
        chat(target, response_format={"type": "json_object"}, extra_body={"no_such_field": 1})
    except package.BadRequestError:
        return
    raise AssertionError("it was dropped in silence")


# other clients


@feature("langchain-openai", "invoke, stream, go on with a conversation")
def _(target: Target) -> None:
    from langchain_openai import ChatOpenAI

    words: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "timeout": SECONDS, "max_retries": 0}
    model = ChatOpenAI(base_url=target.base, api_key="none", model=target.model, **words)
    whole = model.invoke([("human", "Hi")])
    assert "".join(part.content for part in model.stream([("human", "Hi")])) == whole.content
    assert whole.usage_metadata["output_tokens"] > 0
    assert model.invoke([("human", "Hi"), whole, ("human", "And?")]).response_metadata["finish_reason"]


@feature("litellm", "completion, stream, its own errors")
def _(target: Target) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    words: dict[str, Any] = {"api_base": target.base, "api_key": "none", "max_tokens": 8, "temperature": 0}
    words |= {"model": f"openai/{target.model}", "messages": MESSAGES, "timeout": SECONDS}
    whole = litellm.completion(**words)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**words, stream=True))
    assert text == whole.choices[0].message.content
    try:
        litellm.completion(**{**words, "temperature": -1})
    except litellm.BadRequestError:
        return
    raise AssertionError("a bad value was no BadRequestError")


@feature("llm (the command)", "prompt, streamed and not")
def _(target: Target) -> None:
    with tempfile.TemporaryDirectory() as directory:
        entry = {"model_id": "here", "model_name": target.model, "api_base": target.base}
        Path(directory, "extra-openai-models.yaml").write_text(json.dumps([entry]))
        environment = os.environ | {"LLM_USER_PATH": directory, "OPENAI_API_KEY": "none"}
        command = [
            beside_python("llm"),
            "-m",
            "here",
            "Hi",
            "-o",
            "max_tokens",
            "8",
            "-o",
            "temperature",
            "0",
            "--no-log",
        ]
        answers = [
            subprocess.run(command + more, env=environment, capture_output=True, check=True, timeout=60).stdout
            for more in ([], ["--no-stream"])
        ]
    assert answers[0] == answers[1] and answers[0].strip()


@feature("lm-eval", "local task: scores equal to the engine's own")
def _(target: Target) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = [
        {"question": "The sky is", "choices": [" blue", " made of cheese"], "answer": 0},
        {"question": "One and one is", "choices": [" two", " three"], "answer": 0},
    ]
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory, "rows.jsonl")
        data.write_text("\n".join(map(json.dumps, rows)))
        task = {
            "task": "local_rows",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
        }
        Path(directory, "rows.yaml").write_text(json.dumps(task))
        arguments = f"model={target.model},base_url={target.base}/completions,tokenizer={target.checkpoint}"
        found = simple_evaluate(
            model="local-completions",
            model_args=f"{arguments},tokenizer_backend=huggingface,max_retries=1,timeout={SECONDS}",
            tasks=["local_rows"],
            task_manager=TaskManager(include_path=directory, include_defaults=False),
            log_samples=True,
            cache_requests=False,
        )
    samples = sorted(found["samples"]["local_rows"], key=lambda sample: sample["doc_id"])
    for sample, row in zip(samples, rows, strict=True):
        scores = [float(score[0][0]) for score in sample["resps"]]
        expected = [own_score(target.checkpoint, row["question"], choice) for choice in row["choices"]]
        assert all(abs(score - own) < 1e-4 for score, own in zip(scores, expected, strict=True)), (scores, expected)


# plain HTTP


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


# What the checks stand on


def said(events: str) -> str:
    """The text of server-sent events."""
    payloads = [line.removeprefix("data: ") for line in events.split("\n") if line.startswith("data: {")]
    return "".join(choice["text"] for payload in payloads for choice in json.loads(payload)["choices"])


def own_score(checkpoint: Path, context: str, continuation: str) -> float:
    """What a bare engine says of a continuation."""
    from engine.engine import Engine
    from engine.kernels.choose import choose
    from loaders.checkpoint import load_model

    model = load_model(checkpoint)
    engine = Engine(model, choose(model.config, model.weights, 16))
    prompt = tuple(f"{context}{continuation}".encode())
    engine.add(Request("scored", prompt, Sampling(max_tokens=1, temperature=0, prompt_logprobs=1)))
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, PromptScored):
                return sum(record.logprob for record in event.logprobs[-len(continuation.encode()) :])
    raise AssertionError("the prompt was not scored")


def beside_python(name: str) -> str:
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name
