"""loaders/messages.py: messages are plain afterwards, and say what they said before."""

from typing import Any

import pytest

from loaders.messages import plain_messages

CALL = {"type": "function", "function": {"name": "add", "arguments": "{}"}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ],
)
def test_null_missing_and_empty_stay_apart_beside_tool_calls(message: dict[str, Any]) -> None:
    assert plain_messages([message]) == [message]
