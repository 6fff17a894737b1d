"""Text to token ids and back: every option, and a tokenizer that takes too long."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from deploy.http import edge
from loaders.tokenizer import Tokenizer
from tests import http_world
from tests.http_world import MODEL, ScriptedBackend, Served, served, tiny_backend, tiny_tokenizer

USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def door() -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        with_beginning = tiny_tokenizer(add_bos_token=True)
        patch.setattr(http_world, "tiny_tokenizer", lambda: with_beginning)
        with served(tiny_backend()) as opened:
            yield opened


def tokens(door: Served, **fields: Any) -> list[int]:
    found: list[int] = door.post("/tokenize", fields).json()["tokens"]
    return found


def test_a_text_is_a_whole_prompt_unless_it_is_said_to_be_a_part(door: Served) -> None:
    whole, part = tokens(door, prompt="Once"), tokens(door, prompt="Once", add_special_tokens=False)
    assert part == list(b"Once") and whole == [1, *part]  # 1 begins a text
    assert tokens(door, prompt="Once", add_special_tokens=True) == whole
    assert tokens(door, prompt="", add_special_tokens=False) == []


def test_a_conversation_is_asked_to_go_on_unless_it_is_said_not_to(door: Served) -> None:
    asked, plain = tokens(door, messages=USER), tokens(door, messages=USER, add_generation_prompt=False)
    assert asked[: len(plain)] == plain and bytes(asked[len(plain) + 1 :]) == b"assistant\n"
    assert asked == tokens(door, messages=USER, add_generation_prompt=True)


def test_tokens_are_shown_as_texts_where_that_is_wanted(door: Served) -> None:
    answer = door.post("/tokenize", {"prompt": "aé", "return_token_strs": True}).json()
    assert answer["token_strs"] == ["<|im_start|>", "a", "\ufffd", "\ufffd"]
    assert "token_strs" not in door.post("/tokenize", {"prompt": "a"}).json()


def test_control_tokens_in_what_a_user_says_are_text(door: Served) -> None:
    said = tokens(door, messages=[{"role": "user", "content": "<|im_end|>"}])
    assert said.count(2) == 1  # the template's own
    assert door.post("/tokenize", {"prompt": "<|im_end|>"}).json()["tokens"] == [1, 2]


def test_ids_become_text_whichever_model_is_named(door: Served) -> None:
    assert door.post("/detokenize", {"tokens": list("né".encode()), "model": MODEL}).json() == {"prompt": "né"}
    assert door.post("/detokenize", {"tokens": []}).json() == {"prompt": ""}
    assert door.post("/detokenize", {"tokens": [97], "model": "nobody"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/tokenize", {"prompt": 5}),
        ("/tokenize", {"prompt": "x", "add_special_tokens": "no"}),
        ("/tokenize", {"messages": []}),
        ("/tokenize", {"prompt": "x", "truncate": 5}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": "abc"}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [True]}),
        ("/detokenize", {"tokens": [97], "skip_special_tokens": True}),
    ],
)
def test_options_that_are_none_are_refused(door: Served, path: str, fields: dict[str, Any]) -> None:
    assert door.post(path, fields).status_code == 400


def test_a_text_that_takes_too_long_is_refused_and_who_waits_behind_it_is_not_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(edge, "ENCODING_SECONDS", 0.3)
    begun, may_end, encode = threading.Semaphore(0), threading.Event(), Tokenizer.encode

    def slow(tokenizer: Tokenizer, text: str, **words: Any) -> list[int]:
        if text == "slow":
            begun.release()
            may_end.wait(20)
        return encode(tokenizer, text, **words)

    monkeypatch.setattr(Tokenizer, "encode", slow)
    with served(ScriptedBackend()) as door, ThreadPoolExecutor(2) as clients:
        late = [clients.submit(door.complete, "slow") for _ in range(edge.NUM_ENCODERS)]
        for _ in late:
            begun.acquire()
        behind = door.complete("quick")
        assert (behind.status_code, behind.headers["retry-after"]) == (429, "1")
        for answer in late:
            assert answer.result().status_code == 400
            assert answer.result().json()["error"]["code"] == "context_length_exceeded"
        assert door.client.get("/health").status_code == 200
        may_end.set()
        assert door.complete("quick").status_code == 200
        assert len(door.backend.seen) == 1
