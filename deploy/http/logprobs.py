"""Logprobs in OpenAI's two shapes: a list of records for chats, four columns for plain completions."""

import codecs
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.event import TokenLogprob
from loaders.tokenizer import Tokenizer

LEAST = -9999.0  # JSON has no infinity


class TokenTexts:
    """What a token looks like where it stands alone."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocabulary = tokenizer.vocabulary
        added = tokenizer.spec.description.get("added_tokens", ())
        self._control = {token["id"]: token["content"] for token in added if token["id"] in tokenizer.special_ids}

    def bytes_of(self, token: int) -> bytes:
        """Its bytes; a control token's are those of its name."""
        return self._control[token].encode() if token in self._control else self.said_by(token)

    def said_by(self, token: int) -> bytes:
        """What it adds to a text; nothing if it is a control token."""
        return self._vocabulary.bytes_of(token)

    def text(self, token: int) -> str:
        return self.bytes_of(token).decode("utf-8", "replace")

    def key(self, token: int) -> str:
        """A text that no other token has: what is no character by itself is written as bytes."""
        raw = self.bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{value:02x}" for value in raw)


def number(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST


def chat_logprobs(records: Iterable[TokenLogprob], num_top: int, texts: TokenTexts) -> dict[str, Any]:
    """`{"content": [{"token", "logprob", "bytes", "top_logprobs"}], "refusal": null}`"""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": texts.text(token), "logprob": number(logprob), "bytes": list(texts.bytes_of(token))}

    content = [
        entry(record.token, record.logprob)
        | {"top_logprobs": [entry(token, logprob) for token, logprob in record.top[:num_top]]}
        for record in records
    ]
    return {"content": content, "refusal": None}


@dataclass(slots=True)
class Columns:
    """A plain completion's logprobs as they grow. A column's entry says where its token begins in the text."""

    texts: TokenTexts
    num_top: int
    offset: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def add_prompt(self, prompt: Sequence[int], records: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The columns of a prompt; its first token has nothing before it, and so no logprob."""
        first = self._columns([TokenLogprob(prompt[0], 0.0, ())])
        first["token_logprobs"], first["top_logprobs"] = [None], [None]
        rest = self._columns(records)
        return {name: first[name] + rest[name] for name in first}

    def add(self, records: Iterable[TokenLogprob]) -> dict[str, Any]:
        return self._columns(records)

    def _columns(self, records: Iterable[TokenLogprob]) -> dict[str, Any]:
        columns: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for record in records:
            top = {self.texts.key(token): number(logprob) for token, logprob in record.top[: self.num_top]}
            columns["tokens"].append(self.texts.key(record.token))
            columns["token_logprobs"].append(number(record.logprob))
            columns["top_logprobs"].append({**top, self.texts.key(record.token): number(record.logprob)})
            columns["text_offset"].append(self.offset)
            self.skip([record.token])
        return columns

    def skip(self, tokens: Iterable[int]) -> None:
        """Go on behind these."""
        for token in tokens:
            self.offset += len(self._decoder.decode(self.texts.said_by(token)))


def joined(parts: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Columns one below the other."""
    whole: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    present = [part for part in parts if part is not None]
    for part in present:
        for name in whole:
            whole[name] += part[name]
    return whole if present else None
