"""The token that a checkpoint's tokenizer names as its last, which ends an answer too.

Many a model was taught to end its turns with that one and keeps its forebear's config, or names none there.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.refusal import Refusal
from loaders.tokenizer_spec import named_tokens, optional


def named_ending(directory: Path, vocab_size: int) -> int | None:
    """Its id, if it is to be found. Files that cannot be read are refused where the tokenizer is."""
    with suppress(Refusal):
        config = optional(directory / "tokenizer_config.json")
        named = named_tokens(optional(directory / "special_tokens_map.json")) | named_tokens(config)
        text = named.get("eos_token")
        for token, content in tokens(directory, config) if text is not None else ():
            if content == text and type(token) is int and 0 <= token < vocab_size:
                return token
    return None


def tokens(directory: Path, config: Mapping[str, Any]) -> Iterator[tuple[object, object]]:
    """Ids and texts, first those of the small file: the other one has the whole vocabulary."""
    listed = config.get("added_tokens_decoder")
    for name, flags in listed.items() if isinstance(listed, dict) else ():
        if isinstance(flags, dict) and name.isdecimal() and len(name) < 10:
            yield int(name), flags.get("content")
    description = optional(directory / "tokenizer.json")
    added, model = description.get("added_tokens"), description.get("model")
    for flags in added if isinstance(added, list) else ():
        if isinstance(flags, dict):
            yield flags.get("id"), flags.get("content")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    for content, token in vocab.items() if isinstance(vocab, dict) else ():
        yield token, content
