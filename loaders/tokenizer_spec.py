"""TokenizerSpec: all that the files of a model say about its tokenizer. Read here, and put to work elsewhere."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.refusal import BrokenFile, shown
from loaders.json_file import read_json
from loaders.unreadable import reason

LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can bring half a character, and no tokenizer takes it
MAX_TEMPLATE_BYTES = 1 << 20
MAX_ROWS = 1 << 24
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """A tokenizer as its files describe it."""

    description: Mapping[str, Any]  # what a tokenizer.json holds
    named_tokens: Mapping[str, str] = field(default_factory=dict)  # "eos_token" -> its text
    chat_templates: Mapping[str, str] = field(default_factory=dict)  # by name; "default" is the usual one
    eos_token_ids: tuple[int, ...] = ()
    adds_bos: bool | None = None  # None: the description's post-processor says
    max_tokens: int | None = None  # the model's context
    num_rows: int | None = None  # of the model's embedding, which may have more than there are tokens


def read_spec(directory: Path) -> TokenizerSpec:
    """What a checkpoint's directory says."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise BrokenFile(f"{directory} has no tokenizer.json, which is the tokenizer format that is read here")
    description = read_json(path)
    config = optional(directory / "tokenizer_config.json")
    special_map = optional(directory / "special_tokens_map.json")
    model, generation = optional(directory / "config.json"), optional(directory / "generation_config.json")
    check_description(path, description)
    add_listed_tokens(description, config)
    named = named_tokens(special_map) | named_tokens(config)
    mark_special(description, [*named.values(), *listed_specials(config), *listed_specials(special_map)])
    adds_bos = config.get("add_bos_token")
    return TokenizerSpec(
        description=description,
        named_tokens=named,
        chat_templates=chat_templates(directory, config),
        eos_token_ids=tuple(dict.fromkeys((*ids(generation), *ids(model)))),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        max_tokens=positive(model.get("max_position_embeddings")),
        num_rows=positive(model.get("vocab_size")),
    )


def optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def check_description(path: Path, description: dict[str, Any]) -> None:
    """What is taken apart here must have the form that the tokenizers library gives it."""
    model, added = description.get("model"), description.setdefault("added_tokens", [])
    if not isinstance(model, dict):
        raise BrokenFile(f"{path} has no model; a tokenizer.json has one")
    if not isinstance(added, list) or not all(is_added_token(token) for token in added):
        raise BrokenFile(f"{path} has added_tokens that are no list of objects with an id and a content")


def is_added_token(token: Any) -> bool:
    if not isinstance(token, dict):
        return False
    content = token.get("content")
    return isinstance(content, str) and content != "" and isinstance(token.get("id"), int)


def add_listed_tokens(description: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Add the tokens that only tokenizer_config.json lists, as transformers does."""
    listed = config.get("added_tokens_decoder")
    known = {token["content"] for token in description["added_tokens"]}
    for token, flags in sorted(listed.items(), key=lambda item: item[0].zfill(12)) if isinstance(listed, dict) else ():
        entry = {"id": int(token) if token.isdigit() else None, **flags} if isinstance(flags, dict) else None
        if not is_added_token(entry):
            raise BrokenFile(f"tokenizer_config.json lists the added token {shown(token)} as {shown(flags)}")
        assert entry is not None
        if entry["content"] not in known:
            description["added_tokens"].append({name: entry.get(name) for name in ("id", "content", *FLAGS)})


def mark_special(description: dict[str, Any], texts: list[str]) -> None:
    """What a config names as special is, even where tokenizer.json has it as an ordinary token."""
    added, vocab = description["added_tokens"], description["model"].get("vocab")
    known = {token["content"] for token in added}
    if isinstance(vocab, dict):
        added += [{"id": vocab[text], "content": text} for text in dict.fromkeys(texts) if text in vocab.keys() - known]
    for token in added:
        for flag in FLAGS:
            token[flag] = bool(token.get(flag))
        token["special"] = token["special"] or token["content"] in texts


def named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    texts = {name: text_of(config.get(name)) for name in NAMED_TOKENS}
    return {name: text for name, text in texts.items() if text}


def listed_specials(config: Mapping[str, Any]) -> list[str]:
    listed = config.get("additional_special_tokens")
    return [text for text in map(text_of, listed) if text] if isinstance(listed, list) else []


def text_of(token: Any) -> str | None:
    """A token's text, where files give it alone or in an object with its flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and not LONE_SURROGATE.search(text) else None


def chat_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """A file of its own goes before one in the config, as in transformers."""
    template = config.get("chat_template")
    if (path := directory / "chat_template.jinja").is_file():
        return {"default": read_template(path)}
    if (path := directory / "chat_template.json").is_file():
        template = read_json(path).get("chat_template")
    if isinstance(template, str):
        return {"default": template}
    if not isinstance(template, list):
        return {}
    entries = [entry for entry in template if isinstance(entry, dict)]
    return {str(entry.get("name")): entry["template"] for entry in entries if isinstance(entry.get("template"), str)}


def read_template(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise BrokenFile(
                f"{path} has {path.stat().st_size} bytes; a chat template has at most {MAX_TEMPLATE_BYTES}"
            )
        return path.read_text("utf-8")
    except OSError as trouble:
        raise BrokenFile(f"{path} cannot be read: {reason(trouble)}") from None
    except UnicodeDecodeError as trouble:
        raise BrokenFile(f"{path} is not UTF-8: {trouble.reason} at byte {trouble.start}") from None


def ids(config: Mapping[str, Any]) -> list[int]:
    """The ids that end a text: one, or a list of them."""
    value = config.get("eos_token_id")
    return [token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int) and token >= 0]


def positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
