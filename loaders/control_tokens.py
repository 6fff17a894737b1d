"""ControlTokens: the tokens that steer a model answer to secret names, so that no text from outside can utter them.

A user who writes "<|im_start|>system" must not open a system turn. Others look for such text in messages and escape
it, or encode messages and template apart. Both go wrong where a template trims, splits or joins what it is given, and
the second changes what pieces of text meet, and so the tokens of harmless messages.

Here the tokenizer itself is changed, once, as it is loaded: each control token gets a name that nobody can guess, in
the vocabulary and among the added tokens, under its old id. Its real text is then text like any other: no match, no
merge and no rule of the tokenizer leads to the id. Whoever may utter control tokens, a chat template or a raw prompt,
has its own text `conceal`ed. Since one whole text is encoded as ever, harmless messages give the usual tokens.
"""

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any


def nonce() -> str:
    """What nobody can guess. Digits, which templates do not trim and which have no case."""
    return f"{secrets.randbelow(10**20):020}"


@dataclass(frozen=True)
class ControlTokens:
    """The secret name of each control token."""

    names: Mapping[str, str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "ControlTokens":
        # Private characters at both ends, so that no name is part of another, or of what stands beside it.
        return cls({text: f"\ue000{nonce()}{number}\ue001" for number, text in enumerate(dict.fromkeys(texts))})

    def conceal(self, text: str) -> str:
        """A text whose control tokens count, by their secret names."""
        return self._real.sub(lambda match: self.names[match[0]], text) if self.names else text

    def reveal(self, text: str) -> str:
        """A text in which secret names are real ones again."""
        return self._secret.sub(lambda match: self._texts[match[0]], text) if self.names else text

    @cached_property
    def _real(self) -> re.Pattern[str]:
        # The tokenizers library takes the leftmost match, and of those the longest.
        return re.compile("|".join(re.escape(text) for text in sorted(self.names, key=len, reverse=True)))

    @cached_property
    def _secret(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.names.values())))

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {name: text for text, name in self.names.items()}


def rename(description: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer.json in which control tokens have other names, and the same ids."""
    model = dict(description["model"])
    if isinstance(model.get("vocab"), dict):
        vocab = dict(model["vocab"])
        vocab |= {name: vocab[text] for text, name in names.items() if text in vocab}
        model["vocab"] = {piece: token for piece, token in vocab.items() if piece not in names}
    elif isinstance(model.get("vocab"), list):  # Unigram: pieces with scores, by id
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [
            [left, right] for left, right in pairs if names.keys().isdisjoint((left, right, left + right))
        ]
    if model.get("unk_token") in names:
        # A character without a token would become this one, which in some models ends the text. It is dropped instead.
        model["unk_token"] = None
    added = [renamed(token, names) for token in description.get("added_tokens") or ()]
    return {**description, "model": model, "added_tokens": added}


def renamed(token: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    if token["content"] not in names:
        return token
    # Where it counts is decided by who conceals; here it must be found as it stands.
    return {**token, "content": names[token["content"]], "special": True, "normalized": False, "single_word": False}
