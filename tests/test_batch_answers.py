"""deploy/jobs/openai_lines.py, asked.py, results.py, inline_answers.py: a real engine's answers, in both shapes."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deploy.jobs.asked import Asked, Words, asked_plainly
from deploy.jobs.inline_answers import InlineAnswers
from deploy.jobs.lines import Line
from deploy.jobs.openai_lines import OpenAILines
from deploy.jobs.results import answer_line
from engine.adapter import Adapter
from engine.engine import Engine
from engine.event import TokenEvent
from engine.options import EngineOptions
from engine.refusal import BadRequest, Refusal
from engine.weights import Model
from loaders.checkpoint import load_model
from loaders.made_up import made_up_adapter
from loaders.tokenizer import Tokenizer, load_tokenizer
from tests.batches import by_line, run_batch, write_lines, written
from tests.engines import quickest
from tests.tiny import write_checkpoint
from tests.tiny_tokenizer import write_tokenizer

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_checkpoint(directory, "qwen3", {"group_size": 32, "bits": 4})
    return write_tokenizer(directory)


@pytest.fixture(scope="module")
def tokenizer(place: Path) -> Tokenizer:
    return load_tokenizer(place)


@pytest.fixture
def answers(place: Path, tokenizer: Tokenizer) -> Iterator[InlineAnswers]:
    def make() -> tuple[Engine, Mapping[str, Adapter]]:
        model: Model = load_model(place)
        options = EngineOptions(cache_bytes=32 << 20, max_sequences=8)
        engine = Engine(model, quickest()(model.config, options.block_size), options, tokenizer.vocabulary)
        return engine, {name: made_up_adapter(model.config, 4, seed, 0.2) for seed, name in enumerate(("red", "blue"))}

    with closing(InlineAnswers(make, tokenizer)) as made:
        yield made


@pytest.fixture(scope="module")
def openai(tokenizer: Tokenizer) -> OpenAILines:
    return OpenAILines(lambda: tokenizer, ("tiny", "/models/tiny"), ("red", "blue"), lambda: NOW)


def line(url: Any, **body: Any) -> Line:
    return Line(1, "x", url, body, seed=7)


def chat(**body: Any) -> Line:
    return line("/v1/chat/completions", **{"messages": [{"role": "user", "content": "hi"}], **body})


def told(answers: InlineAnswers, asked: Asked) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        return asked.tell([await answers.answer(words) for words in asked.questions])

    return asyncio.run(ask())


def test_a_chat_is_answered_as_openai_answers(answers: InlineAnswers, openai: OpenAILines) -> None:
    body = told(answers, openai.asked(chat(max_tokens=5, model="tiny"), {}))
    assert body["object"] == "chat.completion"
    assert body["created"] == NOW and body["model"] == "tiny"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("length", "stop")
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]


def test_several_prompts_are_several_questions_and_one_answer(answers: InlineAnswers, openai: OpenAILines) -> None:
    asked = openai.asked(line("/v1/completions", prompt=["one", "two"], n=2, max_tokens=4, echo=True), {})
    assert len(asked.questions) == 2
    body = told(answers, asked)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["text"][:3] for choice in body["choices"]] == ["one", "one", "two", "two"]


def test_logprobs_come_in_both_of_openais_shapes(answers: InlineAnswers, openai: OpenAILines) -> None:
    body = told(answers, openai.asked(chat(max_tokens=3, logprobs=True, top_logprobs=2, ignore_eos=True), {}))
    content = body["choices"][0]["logprobs"]["content"]
    assert len(content) == 3 and all(len(entry["top_logprobs"]) == 2 for entry in content)
    body = told(
        answers, openai.asked(line("/v1/completions", prompt="ab", max_tokens=3, logprobs=1, ignore_eos=True), {})
    )
    assert len(body["choices"][0]["logprobs"]["tokens"]) == 3


def test_a_model_may_be_an_adapter_by_its_name(openai: OpenAILines) -> None:
    assert openai.asked(chat(model="red"), {}).questions[0]["adapter"] == "red"
    assert openai.asked(chat(adapter="blue"), {}).questions[0]["adapter"] == "blue"
    assert "adapter" not in openai.asked(chat(model="/models/tiny"), {}).questions[0]
    with pytest.raises(Refusal, match="the model 'gpt-4o' does not exist; known are tiny, red, blue"):
        openai.asked(chat(model="gpt-4o"), {})
    with pytest.raises(BadRequest, match="two different adapters"):
        openai.asked(chat(model="red", adapter="blue"), {})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"stream": True}, "a line of a batch is answered as a whole"),
        ({"temprature": 1}, "does not support the field temprature"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"messages": []}, "messages"),
        ({"tools": [{}]}, "does not support the field tools"),
    ],
)
def test_a_body_that_cannot_be_answered_is_refused_in_a_sentence(
    openai: OpenAILines, body: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(Refusal, match=sentence):
        openai.asked(chat(**body), {})


def test_what_a_line_leaves_open_is_filled_in_and_what_it_says_stays(openai: OpenAILines) -> None:
    defaults: Words = {"max_tokens": 9, "temperature": 0.5}
    assert openai.asked(chat(), defaults).questions[0] == {
        "seed": 7,
        "max_tokens": 9,
        "temperature": 0.5,
        "prompt": openai.asked(chat(), {}).questions[0]["prompt"],
    }
    (words,) = openai.asked(chat(max_completion_tokens=3, temperature=0.0, seed=-1), defaults).questions
    assert (words["max_tokens"], words["temperature"], words["seed"]) == (3, 0.0, 2**64 - 1)
    (words,) = asked_plainly(line(None, prompt="x", seed=3, max_tokens=None), defaults).questions
    assert (words["max_tokens"], words["seed"]) == (9, 3)


def mixed(count: int) -> Iterator[dict[str, Any]]:
    """Lines of every kind, no two alike."""
    for number in range(count):
        match number % 6:
            case 0:
                yield {"prompt": f"prompt {number}", "max_tokens": 8, "temperature": 1.0}
            case 1:
                yield {"prompt": f"prompt {number}", "max_tokens": 12, "temperature": 0, "adapter": "red"}
            case 2:
                yield {"messages": [{"role": "user", "content": f"{number}"}], "max_tokens": 6, "adapter": "blue"}
            case 3:
                yield openai_line(number, "/v1/chat/completions", messages=[{"role": "user", "content": f"{number}"}])
            case 4:
                yield openai_line(number, "/v1/completions", prompt=[f"a{number}", f"b{number}"], model="red")
            case 5:
                yield {"prompt": f"prompt {number}", "n": 3, "max_tokens": 5, "custom_id": f"plain-{number}"}


def openai_line(number: int, url: str, **body: Any) -> dict[str, Any]:
    body = {"max_tokens": 7, "temperature": 0.8, **body}
    return {"custom_id": f"id-{number}", "method": "POST", "url": url, "body": body}


def outcome(output: Path) -> dict[Any, Any]:
    """What was written, by line or custom_id."""
    return {line.get("custom_id") or line["line"]: line for line in written(output)}


def test_a_batch_is_answered_the_same_however_many_lines_are_asked_at_once(
    tmp_path: Path, answers: InlineAnswers, openai: OpenAILines
) -> None:
    def ask(line: Line) -> Asked:
        return asked_plainly(line, {}) if line.url is None else openai.asked(line, {})

    lines = [*mixed(36), {"prompt": "x", "adapter": "green"}, openai_line(99, "/v1/completions", prompt="x", model="?")]
    source = write_lines(tmp_path / "in.jsonl", lines)
    run_batch(source, tmp_path / "one.jsonl", answers, ask=ask, max_in_flight=1)
    run_batch(source, tmp_path / "many.jsonl", answers, ask=ask, max_in_flight=20)
    one, many = outcome(tmp_path / "one.jsonl"), outcome(tmp_path / "many.jsonl")
    assert len(one) == 36
    assert {name: without_cache(line) for name, line in one.items()} == {
        name: without_cache(line) for name, line in many.items()
    }
    plain, asked = by_line(tmp_path / "many.errors.jsonl").values()
    assert plain["error"]["message"] == "no adapter 'green' is attached; attached are blue, red"
    assert asked["custom_id"] == "id-99"
    assert asked["response"]["status_code"] == 404
    assert asked["response"]["body"]["error"]["code"] == "model_not_found"


def without_cache(line: dict[str, Any]) -> str:
    """What was found in the prefix cache depends on what ran before, and nothing else does."""
    body = line["response"]["body"] if "response" in line else line
    body["usage"] = {name: value for name, value in body["usage"].items() if name.endswith("n_tokens")}
    return json.dumps(line)


def test_an_openai_result_has_openais_fields(tmp_path: Path, answers: InlineAnswers, openai: OpenAILines) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    source = write_lines(tmp_path / "in.jsonl", [openai_line(1, "/v1/chat/completions", **body)])
    run_batch(source, tmp_path / "out.jsonl", answers, ask=lambda line: openai.asked(line, {}))
    (result,) = written(tmp_path / "out.jsonl")
    assert set(result) == {"id", "custom_id", "response", "error"}
    assert set(result["response"]) == {"status_code", "request_id", "body"}
    assert result["response"]["status_code"] == 200 and result["error"] is None


def test_an_engine_that_dies_takes_along_who_waits(answers: InlineAnswers, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> None:
        raise MemoryError("boom")

    monkeypatch.setattr(answers._engine, "step", explode)
    with pytest.raises(MemoryError, match="boom"):
        asyncio.run(answers.answer({"prompt": "x"}))


def test_a_question_that_is_withdrawn_in_the_turn_of_its_asking_is_not_worked_on(answers: InlineAnswers) -> None:
    async def ask() -> None:
        other = asyncio.ensure_future(answers.answer({"prompt": "x", "max_tokens": 20, "ignore_eos": True}))
        while not answers._engine.has_work:
            await asyncio.sleep(0)
        withdrawn = asyncio.ensure_future(answers.answer({"prompt": "y", "max_tokens": 400, "ignore_eos": True}))
        await asyncio.sleep(0)
        withdrawn.cancel()
        await asyncio.gather(withdrawn, return_exceptions=True)
        await other

    asyncio.run(ask())
    assert not answers._engine.has_work


def test_an_answer_that_was_cancelled_this_turn_stops_nobody_else(
    answers: InlineAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> str:
        cancelled = asyncio.ensure_future(answers.answer({"prompt": "x", "max_tokens": 1, "ignore_eos": True}))
        other = asyncio.ensure_future(answers.answer({"prompt": "y", "max_tokens": 3, "ignore_eos": True}))
        take = answers._take

        def cancel_and_take(told: Any) -> None:
            if isinstance(told, TokenEvent):
                cancelled.cancel()
            take(told)

        monkeypatch.setattr(answers, "_take", cancel_and_take)
        return (await other).choices[0].finish_reason

    assert asyncio.run(ask()) == "length"


def test_an_engine_that_dies_leaves_nobody_waiting_behind_one_that_was_cancelled_this_turn(
    answers: InlineAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> None:
        cancelled = asyncio.ensure_future(answers.answer({"prompt": "x"}))
        other = asyncio.ensure_future(answers.answer({"prompt": "y"}))
        stopped = answers._stopped

        def cancel_and_stop(stepping: asyncio.Task[None]) -> None:
            cancelled.cancel()
            stopped(stepping)

        monkeypatch.setattr(answers, "_stopped", cancel_and_stop)
        monkeypatch.setattr(answers._engine, "step", lambda: [][0])
        await asyncio.wait_for(other, 5)

    with pytest.raises(IndexError):
        asyncio.run(ask())


def test_numbers_that_json_has_not_are_null() -> None:
    logprobs = [{"token": 1, "logprob": float("nan"), "top": ((1, float("-inf")), (2, -0.5))}]
    written = json.loads(answer_line(Line(1, None, None, {}, 7), {"text": "x", "logprobs": logprobs}))
    assert written["logprobs"] == [{"token": 1, "logprob": None, "top": [[1, None], [2, -0.5]]}]
