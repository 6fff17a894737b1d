"""What a request server loads when it starts: a tokenizer, without MLX or NumPy where its files need none."""

from typing import Any

from actors.model_choice import ModelChoice
from engine.vocabulary import Vocabulary
from loaders.tokenizer import load_tokenizer


def make_tokenizer(choice: ModelChoice) -> Any:
    return load_tokenizer(choice.source)


class ByteTokenizer:
    """Text as its bytes: for models without a tokenizer, as tests make them."""

    has_chat_template = False
    vocabulary = Vocabulary(tuple(bytes([value]) for value in range(256)))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return list(text.encode())


def bytes_tokenizer(choice: ModelChoice) -> ByteTokenizer:
    return ByteTokenizer()
