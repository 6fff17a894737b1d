"""What is said of a body that is wrong: which field, what was wanted, what came."""

from typing import Any

import pytest

from deploy.http.chat_fields import ChatFields
from deploy.http.completion_fields import CompletionFields
from deploy.http.payload import fields_of
from deploy.http.tokenizing import TokenizeFields
from engine.refusal import Refusal, Unsupported

HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"prompt": []}, "prompt", "prompt must not be empty"),
        ({"prompt": [[]]}, "prompt.0", "prompt.0 must not be empty"),
        ({"prompt": [1, "a"]}, "prompt.1", "prompt.1 must be an integer; got 'a'"),
        ({"prompt": ["a", 1]}, "prompt.1", "prompt.1 must be a string; got 1"),
        ({"prompt": [[1], [2, -3]]}, "prompt.1.1", "prompt.1.1 must be at least 0; got -3"),
        ({"prompt": {"a": 1}}, "prompt", "prompt must be a string or a list; got {'a': 1}"),
        ({"prompt": 5}, "prompt", "prompt must be a string or a list; got 5"),
        ({}, "prompt", "the field prompt is wanted"),
        ({"n": 1.5}, "n", "n must be an integer; got 1.5"),
        ({"n": 0}, "n", "n must be at least 1; got 0"),
        ({"temperature": "hot"}, "temperature", "temperature must be a number; got 'hot'"),
        ({"temperature": float("nan")}, "temperature", "temperature must be finite; got nan"),
        ({"top_p": 0}, "top_p", "top_p must be more than 0; got 0"),
        ({"stop": ["a"] * 17}, "stop", "stop must have at most 16 entries; got 17"),
        ({"stop": ["a", ""]}, "stop.1", "stop.1 must not be empty"),
        ({"stop": ""}, "stop", "stop must not be empty"),
        ({"stream": "yes"}, "stream", "stream must be true or false; got 'yes'"),
        ({"seed": 2**80}, "seed", "seed must be at most 18446744073709551615; got 1208925819614629174706176"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7", "logit_bias.7 must be at most 100; got 101"),
        ({"stream_options": [1]}, "stream_options", "stream_options must be an object; got [1]"),
        ({"suffix": "y"}, "suffix", "this server does not support the field suffix"),
        ({"sufix": "y"}, "sufix", "this server does not support the field sufix"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens 0 answers nothing without echo"),
        ({"best_of": 2}, "best_of", "best_of other than n is not supported"),
        ({"stream_options": {}}, "stream_options", "stream_options are for streams; stream is not set"),
        ({"prompt": ["a"] * 100, "n": 3}, "n", "prompts times n is 300; 256 is the limit"),
    ],
)
def test_of_a_completion(fields: dict[str, Any], param: str, sentence: str) -> None:
    body = fields if not fields or "prompt" in fields else {"prompt": "Hi"} | fields
    assert refused(CompletionFields, body) == (param, sentence)


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"messages": []}, "messages", "messages must not be empty"),
        ({"messages": "Hi"}, "messages", "messages must be a list; got 'Hi'"),
        ({"messages": ["Hi"]}, "messages.0", "messages.0 must be an object; got 'Hi'"),
        ({"messages": [{"content": "Hi"}]}, "messages.0.role", "the field messages.0.role is wanted"),
        ({"messages": [*HI, {"role": "user"}]}, "messages.1.content", "the field messages.1.content is wanted"),
        (
            {"messages": [{"role": "tool", "content": "Hi"}]},
            "messages.0.role",
            "messages.0.role must be one of 'system', 'developer', 'user', 'assistant'; got 'tool'",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages.0.content",
            "messages.0.content must be a string or a list; got None",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
            "this server does not support messages.0.content.0.type 'image_url'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages.0.content.0.type",
            "this server does not support messages.0.content.0.type 'image_url'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": 5, "text": "Hi"}]}]},
            "messages.0.content.0.type",
            "messages.0.content.0.type must be 'text'; got 5",
        ),
        (
            {"messages": [{"role": "assistant", "content": 5, "tool_calls": []}]},
            "messages.0.content",
            "messages.0.content must be a string or a list; got 5",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "messages.0.tool_calls",
            "this server does not support the field messages.0.tool_calls",
        ),
        (
            {"response_format": {"type": "json_object"}},
            "response_format.type",
            "this server does not support response_format.type 'json_object'",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
            "response_format.type",
            "this server does not support response_format.type 'json_schema'",
        ),
        ({"response_format": "text"}, "response_format", "response_format must be an object; got 'text'"),
        ({"response_format": {}}, "response_format.type", "the field response_format.type is wanted"),
        (
            {"reasoning_effort": "enormous"},
            "reasoning_effort",
            "reasoning_effort must be 'none', 'minimal', 'low', 'medium', 'high' or 'xhigh'; got 'enormous'",
        ),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1: a chat has nothing to answer with otherwise"),
        ({"top_logprobs": 3}, "top_logprobs", "top_logprobs needs logprobs to be true"),
        ({"tools": [{}]}, "tools", "this server does not support the field tools"),
        (
            {"max_tokens": 3, "max_completion_tokens": 4},
            "max_tokens",
            "max_tokens and max_completion_tokens are two words for one thing, and differ",
        ),
    ],
)
def test_of_a_chat(fields: dict[str, Any], param: str, sentence: str) -> None:
    assert refused(ChatFields, {"messages": HI} | fields) == (param, sentence)


def test_of_a_text_to_tokenize() -> None:
    assert refused(TokenizeFields, {}) == ("prompt", "either a prompt or messages are wanted")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        {"response_format": {"type": "json_object"}},
        {"tools": [{}]},
    ],
)
def test_what_others_do_and_this_server_does_not_is_unsupported(fields: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        fields_of(ChatFields, {"messages": HI} | fields)


def refused(kind: Any, body: dict[str, Any]) -> tuple[str | None, str]:
    with pytest.raises(Refusal) as told:
        fields_of(kind, body)
    return told.value.param, told.value.message
