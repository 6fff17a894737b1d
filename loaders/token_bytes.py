"""What each token id means as bytes, so that a text is its tokens' bytes one after the other.

A tokenizer's own decoder works on whole lists of tokens. For the two kinds that language models use, its result is
the same as that of joining bytes: byte-level vocabularies, where each character of a token stands for one byte, and
SentencePiece's, where "▁" is a space and "<0x0A>" a byte. What works otherwise is refused by name. One difference is
wanted: where bytes are no UTF-8, the second kind's own decoder gives up on the whole run of bytes, and we do not.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.refusal import Unsupported

NO_BYTE = "\uffff"  # cannot be encoded as latin-1, which is how the characters below are told apart


def byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary, as GPT-2 has it."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


BYTE_ALPHABET = byte_alphabet()
TO_LATIN_1 = dict.fromkeys(range(256), NO_BYTE) | {ord(char): chr(byte) for byte, char in BYTE_ALPHABET.items()}
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class TokenDecoder:
    """How a token's text becomes bytes: what a decoder in a tokenizer.json comes to."""

    is_byte_level: bool = False
    has_byte_tokens: bool = False
    replaced: Sequence[tuple[str, str]] = ()
    strips_space: bool = False  # one space at the very beginning of a text is dropped

    def decode(self, token: str) -> bytes:
        if self.is_byte_level:
            try:
                return token.translate(TO_LATIN_1).encode("latin-1")
            except UnicodeEncodeError:  # an added token, whose text is plain
                return token.encode()
        if self.has_byte_tokens and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        for old, new in self.replaced:
            token = token.replace(old, new)
        return token.encode()


def parse_decoder(decoder: Mapping[str, Any] | None) -> TokenDecoder:
    """Read the decoder of a tokenizer.json, or refuse it by name."""
    parts = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"]:
        return TokenDecoder(is_byte_level=True)
    if kinds == ["Metaspace"]:
        scheme = parts[0].get("prepend_scheme", "always")
        return TokenDecoder(replaced=((parts[0].get("replacement", "▁"), " "),), strips_space=scheme != "never")
    replaced: list[tuple[str, str]] = []
    strips_space = False
    for part in parts:
        match part:
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                replaced.append((old, new))
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if "Fuse" in kinds[: kinds.index("Strip")]:
                strips_space = True  # of the text, because its tokens were fused before
            case {"type": "ByteFallback" | "Fuse"}:
                pass
            case _:
                raise Unsupported(f"a tokenizer that decodes with {part.get('type')} is not known here")
    if not parts:
        raise Unsupported("a tokenizer without a decoder is not known here; byte-level and SentencePiece ones are")
    return TokenDecoder(False, "ByteFallback" in kinds, tuple(replaced), strips_space)
