"""Real client libraries against a tiny model: what they send is taken, and what they get passes their own checks."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines import score_of, tiny_engine
from tests.http_world import MODEL, Served, served, tiny_backend

pytestmark = [
    pytest.mark.filterwarnings("default"),  # their warnings are not ours
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def door() -> Iterator[Served]:
    with served(tiny_backend()) as opened:
        yield opened


@pytest.fixture
def openai(door: Served) -> Iterator[Any]:
    """The official package, which checks every answer against its own types."""
    package = pytest.importorskip("openai")
    client = package.OpenAI(base_url=f"{door.url}/v1", api_key="none", _strict_response_validation=True, max_retries=0)
    with client:
        yield client


# openai


def test_openai_chats(openai: Any) -> None:
    answer = openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.role == "assistant"
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens is not None


def test_openai_streams_chats_with_usage_and_logprobs(openai: Any) -> None:
    words: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8, "seed": 1}
    whole = openai.chat.completions.create(**words)
    stream = openai.chat.completions.create(
        **words, stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=1
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_has_helpers_for_streams_that_work_too(openai: Any) -> None:
    ending = {"2": 100}  # the token that ends a turn: the helper wants answers that came to their end
    with openai.chat.completions.stream(model=MODEL, messages=MESSAGES, logit_bias=ending) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].finish_reason == "stop"


def test_openai_completes(openai: Any) -> None:
    answer = openai.completions.create(model=MODEL, prompt="Once", max_tokens=4, n=2, logprobs=2, temperature=1)
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.token_logprobs) == 4
    assert len(openai.completions.create(model=MODEL, prompt=[[79, 110], [84]], max_tokens=4).choices) == 2


def test_openai_echoes_and_streams_completions(door: Served) -> None:
    """Without its strict check: it forbids the nulls that OpenAI itself sends here (no score for a prompt's first
    token, no finish reason in a chunk that is not the last)."""
    package = pytest.importorskip("openai")
    with package.OpenAI(base_url=f"{door.url}/v1", api_key="none") as client:
        answer = client.completions.create(model=MODEL, prompt="Once", max_tokens=4, echo=True, logprobs=2)
        chunks = list(client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=3, stream=True))
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


def test_openai_lists_models(openai: Any) -> None:
    assert [model.id for model in openai.models.list()] == [MODEL]
    assert openai.models.retrieve(MODEL).id == MODEL


def test_openai_raises_its_own_errors(openai: Any) -> None:
    import openai as package

    with pytest.raises(package.NotFoundError) as missing:
        openai.chat.completions.create(model="nobody", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(package.BadRequestError) as wrong:
        openai.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=-1)
    assert wrong.value.param == "temperature"


def test_openai_sends_extensions_along(openai: Any) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "deadline_ms": 20_000, "priority": 1}
    answer = openai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4, extra_body=extra)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_openai_hears_of_trouble_in_the_middle_of_a_stream(openai: Any, door: Served) -> None:
    import openai as package

    door.client.post("/v1/system/suspend")
    try:
        stream = openai.completions.create(model=MODEL, prompt="Once", stream=True, extra_body={"deadline_ms": 60})
        with pytest.raises(package.APIError, match="deadline"):
            list(stream)
    finally:
        door.client.post("/v1/system/resume")


def test_openai_works_asynchronously(door: Served) -> None:
    package = pytest.importorskip("openai")

    async def ask() -> tuple[list[str], str]:
        async with package.AsyncOpenAI(
            base_url=f"{door.url}/v1", api_key="none", _strict_response_validation=True
        ) as client:
            words: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8, "seed": 2}
            answers = await asyncio.gather(*(client.chat.completions.create(**words) for _ in range(8)))
            stream = await client.chat.completions.create(**words, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return [answer.choices[0].message.content for answer in answers], text

    answers, streamed = asyncio.run(ask())
    assert set(answers) == {streamed}


# others


def test_langchain_chats_and_streams(door: Served) -> None:
    package = pytest.importorskip("langchain_openai")
    model = package.ChatOpenAI(
        base_url=f"{door.url}/v1", api_key="none", model=MODEL, max_tokens=8, seed=1, stream_usage=True
    )
    whole = model.invoke([("system", "Be brief."), ("human", "Hi")])
    assert whole.usage_metadata["output_tokens"] > 0
    parts = list(model.stream([("system", "Be brief."), ("human", "Hi")]))
    assert "".join(part.content for part in parts) == whole.content
    again = model.invoke([("human", "Hi"), whole, ("human", "And?")])
    assert again.response_metadata["finish_reason"] in ("stop", "length")


@pytest.mark.filterwarnings("ignore")
def test_litellm_completes_and_streams_and_raises_its_own_errors(door: Served) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a price list
    package = pytest.importorskip("litellm", reason="needs litellm, of the extra `clients`")
    words: dict[str, Any] = {"api_base": f"{door.url}/v1", "api_key": "none", "model": f"openai/{MODEL}"}
    words |= {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    whole = package.completion(**words)
    parts = list(package.completion(**words, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    with pytest.raises(package.BadRequestError):
        package.completion(**{**words, "temperature": -1})


def test_the_llm_command_prints_an_answer_as_it_comes(door: Served, tmp_path: Path) -> None:
    command = shutil.which("llm", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("needs llm, of the extra `clients`")
    entry = {"model_id": "here", "model_name": MODEL, "api_base": f"{door.url}/v1"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    words = (command, "-m", "here", "Hi", "-o", "max_tokens", "8", "-o", "temperature", "0", "--no-log")
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=120)
    answer = door.chat(max_tokens=8, temperature=0).json()["choices"][0]["message"]["content"]
    assert said.stdout.strip() == answer.strip()


def test_lm_eval_gets_the_engines_own_scores(door: Served) -> None:
    """Scores over HTTP are those of an engine that is asked directly, to the last digit that JSON carries."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    pairs = [("The sky is", " blue"), ("The sky is", " made of cheese"), ("One and one is", " two")]
    scorer = LocalCompletionsAPI(base_url=f"{door.url}/v1/completions", model=MODEL, batch_size=2, max_length=256)
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    found = scorer.loglikelihood(requests, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score_of(tiny_engine(), *pair) for pair in pairs])


def test_plain_http_is_enough(door: Served) -> None:
    with httpx.Client(trust_env=False, verify=False) as client:
        answer = client.post(f"{door.url}/v1/completions", json={"prompt": "Once", "max_tokens": 1})
    assert answer.status_code == 200
