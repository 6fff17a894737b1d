"""Tokenizer: text to token ids, and what each id means as bytes. Text from outside never becomes a control token.

tokenizer = load_tokenizer("smollm2")
tokenizer.encode_chat([{"role": "user", "content": "<|im_start|> is text here"}])
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from engine.refusal import BadRequest, BrokenFile, PromptTooLong, Refusal, Unsupported
from engine.vocabulary import Vocabulary
from loaders.chat import Chat
from loaders.control_tokens import ControlTokens, rename
from loaders.progress import OnProgress, ignore_progress
from loaders.sources import locate
from loaders.token_bytes import parse_decoder
from loaders.tokenizer_spec import MAX_ROWS, TokenizerSpec, read_spec

# Encoding takes a second for each megabyte, whatever the text; what cannot fit the context is refused before.
MAX_BYTES_PER_TOKEN = 16
MAX_TEXT_BYTES = 4 << 20  # where the context is not known
OPENING_THOUGHT = "<think>"


class Tokenizer:
    """One model's tokenizer. Any number of threads may use it."""

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        self.control = ControlTokens.of(
            token["content"] for token in spec.description["added_tokens"] if token["special"]
        )
        try:
            description = rename(spec.description, self.control.names) | {"truncation": None, "padding": None}
            self._decoder = parse_decoder(description.get("decoder"))
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
        except Refusal:
            raise
        except Exception as trouble:  # the library raises nothing narrower, and a malformed file fails in any way
            raise BrokenFile(f"the tokenizer cannot be used: {self.control.reveal(str(trouble))}") from None
        self._check_ids(description["model"].get("vocab"))
        self._chat = Chat(spec.chat_templates, spec.named_tokens, self.control) if spec.chat_templates else None

    # Text to ids

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text. `special` takes it as a whole prompt: its control tokens count, and BOS comes first."""
        self._check(text)
        if not special:
            return self._ids(text)
        found = self._ids(self.control.conceal(text))
        return self._beginning(found) + found

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        thinking: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The ids of a conversation; control tokens are those that the chat template writes, and no others."""
        if self._chat is None:
            raise BadRequest("this model has no chat template; send a text instead of messages", "messages")
        text = self._chat.text(
            messages,
            add_generation_prompt=add_generation_prompt,
            thinking=thinking,
            tools=tools,
            max_bytes=self.max_text_bytes,
        )
        return self._ids(valid(text, "what the chat template writes"))

    @property
    def has_chat_template(self) -> bool:
        return self._chat is not None

    @property
    def max_text_bytes(self) -> int:
        """Longer texts are refused unread."""
        return MAX_TEXT_BYTES if self.spec.max_tokens is None else MAX_BYTES_PER_TOKEN * self.spec.max_tokens

    # Ids to text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, control tokens left out."""
        state = self.vocabulary.begin().decoding
        state, text = state.step(b"".join(self.token_bytes[token] for token in ids))
        return text + state.finish()

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes that each id adds to a text, by id; none for control tokens, and for rows without a token."""
        texts = {token: text for text, token in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        num_rows = max(max(texts, default=-1) + 1, self.spec.num_rows or 0)
        decode, special = self._decoder.decode, self.special_ids
        return tuple(
            decode(texts[token]) if token in texts and token not in special else b"" for token in range(num_rows)
        )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the engine knows of this tokenizer."""
        return Vocabulary(self.token_bytes, self.strips_leading_space, self.splits_thoughts)

    @property
    def strips_leading_space(self) -> bool:
        return self._decoder.strips_space

    @property
    def splits_thoughts(self) -> bool:
        """Whether the model thinks between tags before it answers."""
        templates = self.spec.chat_templates.values()
        return self.id_of(OPENING_THOUGHT) is not None or any(OPENING_THOUGHT in template for template in templates)

    def opens_thought(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends with the tag that begins a thought, so that the answer begins within one."""
        return self.vocabulary.opens_thought(prompt)

    # Tokens

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text."""
        found: int | None = self._tokenizer.token_to_id(self.control.names.get(token, token))
        return found

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to one less than this."""
        return len(self.token_bytes)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        found = (self._tokenizer.token_to_id(name) for name in self.control.names.values())
        return frozenset(token for token in found if token is not None)

    @property
    def bos_token_id(self) -> int | None:
        text = self.spec.named_tokens.get("bos_token")
        return None if text is None else self.id_of(text)

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a text or a turn."""
        text = self.spec.named_tokens.get("eos_token")
        named = None if text is None else self.id_of(text)
        ids = self.spec.eos_token_ids if named is None else (*self.spec.eos_token_ids, named)
        return tuple(dict.fromkeys(ids))

    def close(self) -> None:
        """End the process that renders chat templates, if there is one."""
        if self._chat is not None:
            self._chat.close()

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def _check(self, text: str) -> None:
        if not isinstance(text, str):
            raise BadRequest(f"the prompt must be a text; got {type(text).__name__}", "prompt")
        num_bytes, most = len(valid(text, "the prompt").encode()), self.max_text_bytes
        if num_bytes > most:
            raise PromptTooLong(
                f"the prompt has {num_bytes} bytes; this model's context holds at most {most}", "prompt"
            )

    def _check_ids(self, vocab: Any) -> None:
        """A control token and an ordinary piece must not share an id, or text would reach it after all.

        Nor may an id be so large that a row for each below it fills the memory.
        """
        secret = set(self.control.names.values())
        ordinary = (
            {token for piece, token in vocab.items() if piece not in secret} if isinstance(vocab, dict) else set()
        )
        for token in ordinary & self.special_ids:
            raise BrokenFile(f"the tokenizer has the id {token} for a control token and for an ordinary one")
        num_rows = max(1 + max(ordinary | self.special_ids, default=-1), self.spec.num_rows or 0)
        if num_rows > MAX_ROWS:
            raise Unsupported(f"the tokenizer has ids for {num_rows} rows; at most {MAX_ROWS} are taken")

    def _beginning(self, ids: list[int]) -> list[int]:
        """BOS, where the model wants it and a prompt does not have it already."""
        bos = self.bos_token_id
        return [bos] if bos is not None and self._adds_bos and ids[:1] != [bos] else []

    @cached_property
    def _adds_bos(self) -> bool:
        if self.spec.adds_bos is not None:
            return self.spec.adds_bos
        around_nothing: list[int] = self._tokenizer.encode("", add_special_tokens=True).ids
        return around_nothing[:1] == [self.bos_token_id]


def valid(text: str, what: str) -> str:
    """A text that is Unicode throughout; JSON can bring half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{what} must be valid Unicode; half a character came", "prompt") from None
    return text


def load_tokenizer(source: str | Path, on_progress: OnProgress = ignore_progress) -> Tokenizer:
    """The tokenizer of a model: a directory, a .gguf file, a hub id or a short name."""
    path = locate(source, on_progress)
    if path.is_dir():
        return Tokenizer(read_spec(path))
    from loaders.gguf import read_gguf  # with NumPy, which many a process needs for nothing else
    from loaders.gguf_tokenizer import tokenizer_spec

    return Tokenizer(tokenizer_spec(read_gguf(path).metadata))
