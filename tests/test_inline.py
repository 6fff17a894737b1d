"""deploy/inline.py and genserve.py: load, load, run. On a tiny model of every kind of prompt."""

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import genserve
from engine.adapter import Adapter
from engine.refusal import BadRequest, PromptTooLong, Refusal, UnknownAdapter
from loaders.made_up import made_up_adapter
from tests.tiny import write_checkpoint
from tests.tiny_tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_checkpoint(directory, "qwen3", {"group_size": 32, "bits": 4})
    return write_tokenizer(directory)


@pytest.fixture(scope="module")
def serving(place: Path) -> genserve.Generation:
    model = genserve.load_model(place)
    voices: dict[str, Adapter | str | Path] = {
        name: made_up_adapter(model.config, rank, seed=rank, strength=0.2) for name, rank in (("a", 4), ("b", 8))
    }
    return genserve.generation(model, genserve.load_tokenizer(place), voices)


GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


def test_one_prompt_gives_one_completion(serving: genserve.Generation) -> None:
    completion = serving.run("hello", **GREEDY)
    assert len(completion.tokens) == 12
    assert completion.finish_reason == "length"
    assert completion.usage.completion_tokens == 12
    assert completion.usage.prompt_tokens > len("hello")  # the chat template stands around it


def test_a_list_of_prompts_gives_a_list_with_the_text_that_each_gets_alone(serving: genserve.Generation) -> None:
    prompts = ["one", "another prompt", [{"role": "user", "content": "hi"}]]
    together = serving.run(prompts, **GREEDY)
    assert [answer.text for answer in together] == [serving.run(prompt, **GREEDY).text for prompt in prompts]


def test_a_text_is_a_turn_of_the_user_and_a_raw_text_is_itself(serving: genserve.Generation) -> None:
    as_turn = serving.run("hi", **GREEDY)
    assert as_turn.text == serving.run([{"role": "user", "content": "hi"}], **GREEDY).text
    assert serving.run("hi", raw=True, **GREEDY).usage.prompt_tokens < as_turn.usage.prompt_tokens


def test_token_ids_are_a_prompt(serving: genserve.Generation) -> None:
    assert serving.run([5, 6, 7], **GREEDY).usage.prompt_tokens == 3


def test_the_pieces_of_a_stream_are_the_completion(serving: genserve.Generation) -> None:
    pieces = list(serving.stream("hello", **GREEDY))
    whole = serving.run("hello", **GREEDY)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert tuple(token for piece in pieces for token in piece.tokens) == whole.tokens
    assert [piece.position for piece in pieces] == list(range(12))
    assert pieces[-1].finish_reason == "length"


def test_a_stream_goes_on_beside_whatever_else_is_asked_meanwhile(serving: genserve.Generation) -> None:
    whole, other = serving.run("hello", **GREEDY).text, serving.run("other", **GREEDY).text
    first, second = serving.stream("hello", **GREEDY), serving.stream("hello", **GREEDY)
    begun = [next(first).text]
    assert serving.run("other", **GREEDY).text == other
    texts = [(mine.text, its.text) for mine, its in zip(first, second, strict=False)]
    assert "".join(begun + [mine for mine, _ in texts]) == whole
    assert whole.startswith("".join(its for _, its in texts))
    second.close()
    assert not serving._mail and serving.run("other", **GREEDY).text == other


def test_adapters_beside_each_other_say_what_each_says_alone(serving: genserve.Generation) -> None:
    names = ["a", None, "b"]
    together = serving.run(["x"] * 3, adapter=names, **GREEDY)
    alone = [serving.run("x", adapter=name, **GREEDY) for name in names]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert len({answer.tokens for answer in together}) == 3


def test_a_seed_gives_the_same_text_again_and_no_seed_another(serving: genserve.Generation) -> None:
    words = GREEDY | {"temperature": 1.5, "max_tokens": 24}
    assert serving.run("x", seed=3, **words).text == serving.run("x", seed=3, **words).text
    assert serving.run("x", **words).tokens != serving.run("x", **words).tokens


def test_choices_differ_and_the_first_is_the_completion(serving: genserve.Generation) -> None:
    answer = serving.run("x", n=3, seed=1, **(GREEDY | {"temperature": 1.5}))
    assert len({choice.tokens for choice in answer.choices}) == 3
    assert answer.tokens == answer.choices[0].tokens
    assert answer.usage.completion_tokens == 36
    assert len(answer.to_dict()["choices"]) == 3


def test_a_stop_string_ends_the_text_before_itself(serving: genserve.Generation) -> None:
    whole = serving.run("hello", **(GREEDY | {"max_tokens": 60}))
    stop = whole.text[10:13]
    ended = serving.run("hello", stop=stop, **(GREEDY | {"max_tokens": 60}))
    assert ended.finish_reason == "stop"
    assert ended.text == whole.text[: whole.text.index(stop)]


def test_an_abandoned_stream_leaves_nothing_behind(serving: genserve.Generation) -> None:
    stream = serving.stream("hello", **(GREEDY | {"max_tokens": 60}))
    next(stream)
    stream.close()
    while serving.engine.has_work:
        serving.engine.step()
    assert serving.engine.stats().used_blocks == 0
    assert serving.engine.stats().num_running == 0


@pytest.mark.parametrize(
    ("words", "refusal", "sentence"),
    [
        ({"temprature": 1}, BadRequest, "there is no setting 'temprature'"),
        ({"temperature": float("nan")}, BadRequest, "temperature must be a number from 0 to 100; got nan"),
        ({"adapter": "c"}, UnknownAdapter, "no adapter 'c' is attached; attached are a, b"),
        ({"adapter": ["a", "b"]}, BadRequest, "1 prompts came with 2 adapters"),
        ({"stop": 7}, BadRequest, "stop must be a string or a list of strings"),
        ({"max_tokens": 10_000}, PromptTooLong, "10000 more are wanted"),
        ({"logit_bias": {"x": 1}}, BadRequest, "logit_bias"),
        ({"raw": "yes"}, BadRequest, "raw must be true or false; got 'yes'"),
        ({"raw": True, "system": "Be brief."}, BadRequest, "a system prompt belongs to a chat"),
    ],
)
def test_bad_words_get_a_sentence(
    serving: genserve.Generation, words: dict[str, object], refusal: type[Exception], sentence: str
) -> None:
    with pytest.raises(refusal, match=sentence):
        serving.run("x", **words)
    assert serving.engine.stats().num_waiting == 0


@pytest.mark.parametrize(
    ("prompt", "words", "sentence"),
    [
        ([5, 6], {"system": "Be brief."}, "a system prompt belongs to a chat"),
        ([{"role": "user", "content": "hi"}], {"raw": True}, "raw is for a text"),
        (np.array([5, 6]), {}, "a prompt is a text, a list of messages or a list of token ids"),
        ([np.int64(5)], {}, "a prompt is a text, a list of messages or a list of token ids"),
    ],
)
def test_what_would_be_left_out_of_a_prompt_is_refused(
    serving: genserve.Generation, prompt: Any, words: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadRequest, match=sentence):
        serving.run(prompt, **GREEDY, **words)


@pytest.mark.parametrize("prompt", ["", [], 7, [{"role": "user"}], ["ok", ""]])
def test_bad_prompts_get_a_sentence(serving: genserve.Generation, prompt: object) -> None:
    with pytest.raises(BadRequest):
        serving.run(prompt, raw=True)  # type: ignore[call-overload]


def test_a_prompt_longer_than_the_context_is_told_both_lengths(serving: genserve.Generation) -> None:
    with pytest.raises(PromptTooLong, match="600 tokens; this model takes 512"):
        serving.run([5] * 600)


def test_a_bad_word_of_a_stream_is_refused_at_once(serving: genserve.Generation) -> None:
    for words in ({"max_tokens": -2}, {"temprature": 1}, {"adapter": "c"}, {"n": 1000}):
        with pytest.raises(Refusal):
            serving.stream("x", **words)
        with pytest.raises(Refusal):
            serving.stream_many(["x"], **words)


def test_a_text_is_no_list_of_prompts(serving: genserve.Generation) -> None:
    with pytest.raises(BadRequest, match="a list of prompts is wanted; got 'abc'"):
        serving.stream_many("abc")


@pytest.mark.parametrize("name", [5, "", "x" * 300])
def test_an_adapter_s_name_is_a_string_that_a_request_can_say(place: Path, name: Any) -> None:
    model = genserve.load_model(place)
    with pytest.raises(BadRequest, match="adapter must be a string of 1 to 256 bytes"):
        genserve.generation(model, genserve.load_tokenizer(place), {name: made_up_adapter(model.config, 4, seed=4)})


def outcome(ask: Callable[[], Any]) -> Any:
    """What it gives, or the sentence that refuses it."""
    try:
        return ask()
    except Refusal as refusal:
        return refusal.message


def in_threads(ask: Callable[[], Any], count: int) -> list[Any]:
    told: list[Any] = []
    threads = [threading.Thread(target=lambda: told.append(outcome(ask))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_other_threads_are_refused_and_leave_the_engine_and_its_streams_as_they_were(
    serving: genserve.Generation,
) -> None:
    whole = serving.run("hello", **GREEDY).text
    stream = serving.stream("hello", **GREEDY)
    begun = next(stream).text
    told = in_threads(lambda: serving.run("hello", **GREEDY), 8) + in_threads(lambda: next(stream), 1)
    assert len(told) == 9
    assert all(sentence.startswith("a generation serves the thread that made it") for sentence in told)
    assert begun + "".join(piece.text for piece in stream) == whole
    assert serving.run("hello", **GREEDY).text == whole


def test_a_stream_that_another_thread_lets_go_of_is_ended_by_the_next_step(serving: genserve.Generation) -> None:
    stream = serving.stream("hello", **(GREEDY | {"max_tokens": 60}))
    next(stream)
    in_threads(stream.close, 1)
    serving.run("x", max_tokens=1)
    while serving.engine.has_work:
        serving.engine.step()
    assert serving.engine.stats().num_running == 0 and not serving._mail


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that this process has threads
def test_a_forked_process_is_told_to_make_its_own(serving: genserve.Generation) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=lambda: there.send(outcome(lambda: serving.run("hello", **GREEDY))))
    child.start()
    assert here.poll(20)
    assert here.recv().startswith("a generation does not come along into a forked process")
    child.join()
