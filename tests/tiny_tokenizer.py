"""A byte tokenizer for the tiny checkpoints of `tests.tiny`: 256 ids, each its own byte but for the control tokens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loaders.token_bytes import BYTE_ALPHABET

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0 to 2, in place of bytes that no text has
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_description(added: tuple[str, ...] = ()) -> dict[str, Any]:
    """A tokenizer.json; `added` tokens are ordinary ones that are found in a text before anything else."""
    special = [token(number, text, True) for number, text in enumerate(CONTROL)]
    ordinary = [token(256 + number, text, False) for number, text in enumerate(added)]
    vocab = dict.fromkeys(CONTROL, 0) | {char: byte for byte, char in BYTE_ALPHABET.items() if byte >= len(CONTROL)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": special + ordinary,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab | {text: number for number, text in enumerate(CONTROL)}, "merges": []},
    }


def token(number: int, content: str, special: bool, **flags: bool) -> dict[str, Any]:
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, "special": special, **usual, **flags}


def write_tokenizer(
    directory: Path | str, description: Mapping[str, Any] | None = None, chat_template: Any = CHATML, **config: Any
) -> Path:
    """Write tokenizer.json and tokenizer_config.json beside a checkpoint, and give the directory back."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(byte_description() if description is None else description))
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": chat_template}
    (directory / "tokenizer_config.json").write_text(json.dumps(named | config))
    return directory
