"""Words: sampling as users say it, in the words of OpenAI and vLLM. What is not known is refused by name."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from engine.refusal import BadRequest
from engine.request import Sampling

WORDS = tuple(field.name for field in fields(Sampling))
LISTS_OF_IDS = ("stop_token_ids", "allowed_token_ids", "banned_token_ids")


def sampling_of(words: Mapping[str, Any], *, max_tokens: int = 256) -> Sampling:
    """The settings that these words ask for; a word that is None says nothing.

    `sampling_of({"temperature": 0.7, "stop": "\\n"})`
    """
    known = dict[str, Any](max_tokens=max_tokens)
    for word, value in words.items():
        if word not in WORDS:
            raise BadRequest(f"there is no setting {word[:40]!r}; known are {', '.join(WORDS)}", word[:40])
        if value is not None:
            known[word] = value
    known["stop"] = stop_strings(known.get("stop", ()))
    for word in LISTS_OF_IDS:
        if word in known:
            known[word] = token_ids(word, known[word])
    known["logit_bias"] = biases(known.get("logit_bias", {}))
    if isinstance(known.get("logprobs"), bool):
        known["logprobs"] = 0 if known["logprobs"] else None
    return Sampling(**known)


def stop_strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise BadRequest("stop must be a string or a list of strings", "stop")
    return tuple(value)


def token_ids(word: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        raise BadRequest(f"{word} must be a list of token ids", word)
    return tuple(value)


def biases(value: Any) -> dict[int, float]:
    """Biases by token id; JSON knows string keys only, so those are read as numbers."""
    if not isinstance(value, Mapping):
        raise BadRequest("logit_bias must map token ids to numbers", "logit_bias")
    try:
        return {token_id(token) if isinstance(token, str) else token: bias for token, bias in value.items()}
    except ValueError:
        raise BadRequest("logit_bias has a key that is not a token id in plain digits", "logit_bias") from None


def token_id(text: str) -> int:
    """The id that these digits write. `int` takes more than digits, and two keys would be one."""
    token = int(text)
    if str(token) != text:
        raise ValueError(text)
    return token
