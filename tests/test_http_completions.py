"""What a plain completion answers: prompts of every kind, echo, scores, and several prompts at once."""

from collections.abc import Iterator
from typing import Any

import pytest

from engine.event import PromptScored
from engine.request import Request, Sampling
from tests.engines import tiny_engine
from tests.http_world import Served, events_of, served, tiny_backend, tiny_tokenizer


@pytest.fixture(scope="module")
def tiny() -> Iterator[Served]:
    with served(tiny_backend()) as door:
        yield door


def test_an_answer_has_openais_shape(tiny: Served) -> None:
    answer = tiny.complete("Once").json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    (choice,) = answer["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}


def test_sixteen_tokens_are_answered_where_nothing_is_said(tiny: Served) -> None:
    answer = tiny.post("/v1/completions", {"prompt": "Once", "ignore_eos": True}).json()
    assert answer["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("Once", 1), (["Once", "Twice"], 2), ([79, 110, 99, 101], 1), ([[79, 110], [84]], 2), (["x"], 1), ([[65]], 1)],
)
def test_prompts_come_as_texts_and_as_ids_alone_and_together(tiny: Served, prompt: Any, count: int) -> None:
    assert len(tiny.complete(prompt).json()["choices"]) == count


def test_a_text_and_its_ids_are_the_same_prompt(tiny: Served) -> None:
    text, ids = tiny.complete("Once").json(), tiny.complete(list(b"Once")).json()
    assert text["choices"][0]["text"] == ids["choices"][0]["text"]


def test_each_prompt_of_many_is_answered_as_if_alone(tiny: Served) -> None:
    prompts = ["Once", "Twice", "Thrice"]
    together = [choice["text"] for choice in tiny.complete(prompts).json()["choices"]]
    assert together == [tiny.complete(prompt).json()["choices"][0]["text"] for prompt in prompts]


def test_choices_of_several_prompts_are_numbered_on(tiny: Served) -> None:
    answer = tiny.complete(["a", "b"], n=2, temperature=1, seed=1).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    alone = tiny.complete("b", n=2, temperature=1, seed=1).json()
    assert [choice["text"] for choice in answer["choices"][2:]] == [choice["text"] for choice in alone["choices"]]


def test_several_prompts_stream_as_one(tiny: Served) -> None:
    whole = tiny.complete(["a", "b"], n=2, temperature=1, seed=1).json()
    chunks = events_of(
        tiny.complete(["a", "b"], n=2, temperature=1, seed=1, stream=True, stream_options={"include_usage": True}).text
    )
    for choice in whole["choices"]:
        mine = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"] == whole["usage"] | {
        "prompt_tokens_details": chunks[-1]["usage"]["prompt_tokens_details"]
    }


def test_echo_puts_the_prompt_in_front(tiny: Served) -> None:
    plain = tiny.complete("Once").json()["choices"][0]["text"]
    assert tiny.complete("Once", echo=True).json()["choices"][0]["text"] == "Once" + plain
    assert tiny.complete(list(b"Once"), echo=True).json()["choices"][0]["text"] == "Once" + plain


def test_echo_with_logprobs_scores_the_prompt_as_the_engine_does(tiny: Served) -> None:
    prompt = tuple(b"The quick brown fox")
    logprobs = tiny.complete(list(prompt), echo=True, logprobs=2, max_tokens=1).json()["choices"][0]["logprobs"]
    scores = scored(prompt)
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1 : len(prompt)] == pytest.approx([score.logprob for score in scores.logprobs])
    for column in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert len(logprobs[column]) == len(prompt) + 1


def test_max_tokens_0_with_echo_scores_and_writes_nothing(tiny: Served) -> None:
    answer = tiny.complete("Once", echo=True, logprobs=0, max_tokens=0).json()
    (choice,) = answer["choices"]
    assert choice["text"] == "Once"
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["token_logprobs"]) == 4
    assert answer["usage"]["completion_tokens"] == 0


def test_max_tokens_0_with_echo_alone_gives_the_prompt_back(tiny: Served) -> None:
    (choice,) = tiny.complete("Once", echo=True, max_tokens=0).json()["choices"]
    assert (choice["text"], choice["logprobs"]) == ("Once", None)


def test_a_prompt_of_one_token_can_be_scored(tiny: Served) -> None:
    (choice,) = tiny.complete("O", echo=True, logprobs=1, max_tokens=0).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None]


def test_streamed_scores_are_those_of_the_whole(tiny: Served) -> None:
    words: dict[str, Any] = {"echo": True, "logprobs": 2, "max_tokens": 5}
    (whole,) = tiny.complete("Once", **words).json()["choices"]
    parts = [chunk["choices"][0] for chunk in events_of(tiny.complete("Once", **words, stream=True).text)]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for column in ("tokens", "text_offset"):
        streamed = [value for part in parts if part["logprobs"] for value in part["logprobs"][column]]
        assert streamed == whole["logprobs"][column]


def test_the_chosen_token_is_always_among_the_likeliest_that_are_told(tiny: Served) -> None:
    logprobs = tiny.complete("Once", temperature=2, seed=5, logprobs=1).json()["choices"][0]["logprobs"]
    for token, logprob, top in zip(
        *(logprobs[name] for name in ("tokens", "token_logprobs", "top_logprobs")), strict=True
    ):
        assert top[token] == logprob
        assert len(top) <= 2


def test_bytes_that_are_no_character_are_named_so_that_no_two_look_alike(tiny: Served) -> None:
    logprobs = tiny.complete([200, 201], echo=True, logprobs=0, max_tokens=0).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xc8", "bytes:\\xc9"]


def test_offsets_point_into_the_text(tiny: Served) -> None:
    (choice,) = tiny.complete("Grüße", echo=True, logprobs=0, max_tokens=0).json()["choices"]
    assert choice["text"] == "Grüße"
    for token, offset in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"][offset] == token


def test_best_of_may_say_what_n_says(tiny: Served) -> None:
    assert tiny.complete("a", n=2, best_of=2, temperature=1).status_code == 200
    assert tiny.complete("a", n=2, best_of=3).status_code == 400


def scored(prompt: tuple[int, ...]) -> PromptScored:
    """What a bare engine says of a prompt."""
    engine = tiny_engine()
    engine.vocabulary = tiny_tokenizer().vocabulary
    engine.add(Request("scored", prompt, Sampling(max_tokens=1, temperature=0, prompt_logprobs=2)))
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, PromptScored):
                return event
    raise AssertionError("the prompt was not scored")
