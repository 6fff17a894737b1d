"""OpenAI's own package, strict where it can be."""

import asyncio
from typing import Any

from benchmarks.checks.table import MESSAGES, SECONDS, Target, feature, refusal


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

    assert refusal(package.NotFoundError, lambda: chat(target, model="nobody")).code == "model_not_found"


@feature("openai, strict", "bad value is BadRequestError and names the field")
def _(target: Target) -> None:
    import openai as package

    assert refusal(package.BadRequestError, lambda: chat(target, temperature=-1)).param == "temperature"


@feature("openai, strict", "what is not supported is refused, not dropped")
def _(target: Target) -> None:
    import openai as package

    words: dict[str, Any] = {"response_format": {"type": "json_object"}, "extra_body": {"no_such_field": 1}}
    refusal(package.BadRequestError, lambda: chat(target, **words), "it was dropped in silence")
