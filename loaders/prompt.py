"""Prompts: what a person says -> token ids. A text is a turn of the user, messages are a conversation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.refusal import BadRequest, shown

if TYPE_CHECKING:
    from loaders.tokenizer import Tokenizer  # it brings arrays along

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]


def is_many(prompts: Any) -> bool:
    """Whether this is a list of prompts; a list of messages, or of ids, is one prompt."""
    return isinstance(prompts, list | tuple) and bool(prompts) and not isinstance(prompts[0], Mapping | int)


def listed(prompts: Any) -> list[Any]:
    """Prompts given together. A text is not a list of its letters."""
    if not isinstance(prompts, Iterable) or isinstance(prompts, str | bytes | Mapping):
        raise BadRequest(f"a list of prompts is wanted; got {shown(prompts)}", "prompts")
    return list(prompts)


def prompt_tokens(
    tokenizer: "Tokenizer", prompt: Prompt, *, system: str | None = None, raw: bool = False
) -> tuple[int, ...]:
    """The ids of a prompt; `raw` takes a text as it stands, without the chat template."""
    if not isinstance(raw, bool):
        raise BadRequest(f"raw must be true or false; got {shown(raw)}", "raw")
    if isinstance(prompt, str):
        if raw or not tokenizer.has_chat_template:
            check_has_place(system)
            return tuple(tokenizer.encode(prompt, special=True))
        return tuple(tokenizer.encode_chat(with_system([{"role": "user", "content": prompt}], system)))
    if not isinstance(prompt, list | tuple) or not prompt:
        raise BadRequest("a prompt is a text, a list of messages or a list of token ids, and not empty", "prompt")
    if all(isinstance(token, int) for token in prompt):
        check_has_place(system)
        return tuple(prompt)
    if not all(isinstance(message, Mapping) for message in prompt):
        raise BadRequest("a conversation is a list of messages, each with a role and a content", "messages")
    if raw:
        raise BadRequest("raw is for a text: messages are always said in the chat template", "raw")
    if not tokenizer.has_chat_template:
        raise BadRequest("this model has no chat template: send a text instead of messages", "messages")
    return tuple(tokenizer.encode_chat(with_system(list(prompt), system)))


def check_has_place(system: str | None) -> None:
    if system is not None:
        raise BadRequest(
            "a system prompt belongs to a chat: it has no place in a raw text, in token ids, or in a model without a "
            "chat template",
            "system",
        )


def with_system(messages: list[Mapping[str, Any]], system: str | None) -> list[Mapping[str, Any]]:
    return messages if system is None else [{"role": "system", "content": system}, *messages]
