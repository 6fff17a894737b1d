"""Messages: a conversation as a program sends it, checked and made plain. Knows no template and no tokens."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine.refusal import BadRequest, PromptTooLong, shown

ROLES = ("system", "user", "assistant", "tool")
# What OpenAI calls the system's turn in newer interfaces; no template of ours knows the word.
SAME_ROLES = {"developer": "system"}


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with every content a text, beside tool calls none, or what the first wrong one is refused for."""
    if not isinstance(messages, list | tuple) or not messages:
        raise BadRequest("messages must be a list of at least one message", "messages")
    return [plain_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def plain_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise BadRequest(f"{where} must be an object with a role and a content; got {shown(message)}", "messages")
    role = message.get("role")
    role = SAME_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise BadRequest(f"{where} has the role {shown(role)}; known are {', '.join(ROLES)}", "messages")
    plain, content = {**message, "role": role}, message.get("content")
    if content is None and role == "assistant" and message.get("tool_calls"):
        return plain  # templates tell null, missing and empty apart
    return {**plain, "content": plain_content(content, where)}


def plain_content(content: Any, where: str) -> str:
    """A content's text; a list of text parts is their texts one after the other."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise BadRequest(f"{where} has the content {shown(content)}; a text is wanted", "messages")
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
    for part, text in zip(content, texts, strict=True):
        if not isinstance(text, str):
            raise BadRequest(f"{where} has the part {shown(part)}; only text is taken", "messages")
    return "".join(text for text in texts if text is not None)


def check_json(value: Any, max_bytes: int, param: str) -> None:
    """Refuse what no JSON could have brought, and what no context could hold."""
    try:
        num_bytes = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError:
        raise BadRequest(f"{param} must be valid Unicode; half a character came", param) from None
    except (TypeError, ValueError, RecursionError) as trouble:
        raise BadRequest(f"{param} must be plain JSON values: {trouble}", param) from None
    if num_bytes > max_bytes:
        raise PromptTooLong(f"{param} have {num_bytes} bytes; this model's context holds at most {max_bytes}", param)
