"""A GGUF file's metadata -> TokenizerSpec, by way of the tokenizer.json that the same model would have.

Two kinds are known: `gpt2`, byte-level BPE with its list of merges, and `llama`, SentencePiece's BPE. The second has
no merges but scores: two pieces merge where their union is a piece, the union with the best score first. So the pairs
whose union is a piece, in order of its score, are its merges.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from engine.refusal import BrokenFile, Unsupported, shown
from loaders.pre_tokenizers import BYTE_LEVEL, IGNORES_MERGES, NORMALIZERS, PRE_TOKENIZERS
from loaders.tokenizer_spec import MAX_ROWS, TokenizerSpec, positive

SPACE = "▁"
MAX_PIECE = 256  # SentencePiece makes pieces of 16 characters where it is not told otherwise


class TokenType(IntEnum):
    """What a token is, as ggml counts."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def tokenizer_spec(metadata: Mapping[str, object]) -> TokenizerSpec:
    """The tokenizer that a file carries."""
    kind = metadata.get("tokenizer.ggml.model")
    tokens = texts(metadata, "tokenizer.ggml.tokens")
    if tokens is None:
        raise BrokenFile("the GGUF file has no tokenizer: tokenizer.ggml.tokens is missing")
    types = numbers(metadata, "tokenizer.ggml.token_type", len(tokens)) or [TokenType.NORMAL] * len(tokens)
    match kind:
        case "gpt2":
            description = byte_level(metadata, tokens, types)
        case "llama":
            description = sentencepiece(metadata, tokens, types)
        case _:
            raise Unsupported(f"the GGUF file's tokenizer is {shown(kind)}; known are 'gpt2' and 'llama'")
    architecture = metadata.get("general.architecture")
    adds_bos = metadata.get(
        "tokenizer.ggml.add_bos_token", kind == "llama" or pre_tokenizer_of(metadata) in IGNORES_MERGES
    )
    eos_names = ("eos", "eot", "eom")
    found = (token_id(metadata, name, len(tokens)) for name in eos_names)
    return TokenizerSpec(
        description=description,
        named_tokens=named_tokens(metadata, tokens),
        chat_templates=chat_templates(metadata),
        eos_token_ids=tuple(dict.fromkeys(token for token in found if token is not None)),
        adds_bos=adds_bos is True,
        max_tokens=positive(metadata.get(f"{architecture}.context_length")),
        num_rows=len(tokens),
    )


def byte_level(metadata: Mapping[str, object], tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    merges = texts(metadata, "tokenizer.ggml.merges")
    if merges is None:
        raise BrokenFile("the GGUF file's tokenizer has no merges: tokenizer.ggml.merges is missing")
    pairs = [merge.split(" ", 1) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise BrokenFile("tokenizer.ggml.merges has an entry that is not two pieces with a space between them")
    pre = pre_tokenizer_of(metadata)
    if pre not in PRE_TOKENIZERS:
        raise Unsupported(f"the pre-tokenizer {shown(pre)} is not known; known are {', '.join(PRE_TOKENIZERS)}")
    return {
        "added_tokens": added_tokens(tokens, types),
        "normalizer": NORMALIZERS.get(pre),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": pairs,
            "ignore_merges": pre in IGNORES_MERGES,
        },
    }


def sentencepiece(metadata: Mapping[str, object], tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    scores = numbers(metadata, "tokenizer.ggml.scores", len(tokens))
    if scores is None:
        raise BrokenFile("the GGUF file's tokenizer has no scores: tokenizer.ggml.scores is missing")
    normal = {
        token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == TokenType.NORMAL
    }
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prepend else []
    restore = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        "added_tokens": added_tokens(tokens, types),
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "decoder": {
            "type": "Sequence",
            "decoders": [restore, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": merges_of(normal),
            "byte_fallback": True,
            "fuse_unk": True,
        },
    }


def merges_of(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces whose union is a piece, the best union first."""
    longest = max(map(len, scores), default=0)
    if longest > MAX_PIECE:  # the cuts of a piece have as many characters as its length squared
        raise Unsupported(f"tokenizer.ggml.tokens has a piece of {longest} characters; at most {MAX_PIECE} are taken")
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=scores.__getitem__, reverse=True)
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def added_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    """Tokens that are found in a text before anything else; all but the user-defined ones steer the model."""
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    return [
        {
            "id": number,
            "content": token,
            "special": kind in special,
            "normalized": False,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
        }
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (*special, TokenType.USER_DEFINED) and token
    ]


def pre_tokenizer_of(metadata: Mapping[str, object]) -> str:
    return str(metadata.get("tokenizer.ggml.pre", "default"))


def named_tokens(metadata: Mapping[str, object], tokens: Sequence[str]) -> dict[str, str]:
    """The tokens that chat templates name, by their texts."""
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    found = {name: token_id(metadata, key, len(tokens)) for name, key in names.items()}
    return {name: tokens[token] for name, token in found.items() if token is not None}


def chat_templates(metadata: Mapping[str, object]) -> dict[str, str]:
    named = {"default": "tokenizer.chat_template", "tool_use": "tokenizer.chat_template.tool_use"}
    found = {name: metadata.get(key) for name, key in named.items()}
    return {name: template for name, template in found.items() if isinstance(template, str)}


def token_id(metadata: Mapping[str, object], name: str, num_tokens: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < num_tokens:
        raise BrokenFile(f"{key} is {shown(value)}; there are {num_tokens} tokens")
    return value


def texts(metadata: Mapping[str, object], key: str) -> list[str] | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_ROWS or not all(isinstance(text, str) for text in value):
        raise BrokenFile(f"{key} is {shown(value)}; a list of texts is wanted")
    return value


def numbers(metadata: Mapping[str, object], key: str, count: int) -> list[Any] | None:
    value = metadata.get(key)
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(isinstance(number, int | float) for number in value)
    ):
        raise BrokenFile(f"{key} is {shown(value)}; one number for each of {count} tokens is wanted")
    return value
