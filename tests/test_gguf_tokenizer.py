"""loaders/gguf_tokenizer.py: a tokenizer out of metadata gives the tokens that the model was trained with."""

import io
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.refusal import BrokenFile, Refusal, Unsupported
from loaders.gguf_tokenizer import TokenType, tokenizer_spec
from loaders.pre_tokenizers import NORMALIZERS, PRE_TOKENIZERS
from loaders.token_bytes import BYTE_ALPHABET
from loaders.tokenizer import Tokenizer, load_tokenizer

WORDS = ["the", "cat", "sat", "on", "mat", "while", "a", "dog", "in", "yard", "barked", "at", "that", "rat", "it's"]


def byte_level_metadata(pre: str | None = "qwen2", **changes: Any) -> dict[str, Any]:
    """A byte-level tokenizer: all bytes, two merges, a control token and an ordinary added one."""
    tokens = [*BYTE_ALPHABET.values(), "th", "the", "<|end|>", "<note>"]
    types = [TokenType.NORMAL] * 258 + [TokenType.CONTROL, TokenType.USER_DEFINED]
    metadata = {
        "general.architecture": "qwen2",
        "qwen2.context_length": 64,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.eos_token_id": 258,
    }
    if pre is not None:
        metadata["tokenizer.ggml.pre"] = pre
    return {key: value for key, value in (metadata | changes).items() if value is not None}


@pytest.fixture(scope="module")
def trained() -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model with byte fallback, trained on the spot."""
    rng = random.Random(0)
    sentences = iter([" ".join(rng.choices(WORDS, k=8)) for _ in range(400)])
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, model_type="bpe", vocab_size=360, byte_fallback=True,
        hard_vocab_limit=False, normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["<note>"], minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_metadata(trained: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """What llama.cpp's converter writes for a SentencePiece model."""

    def kind(number: int) -> TokenType:
        if trained.is_unknown(number):
            return TokenType.UNKNOWN
        if trained.is_control(number):
            return TokenType.CONTROL
        if trained.is_byte(number):
            return TokenType.BYTE
        return TokenType.USER_DEFINED if trained.id_to_piece(number) == "<note>" else TokenType.NORMAL

    count = trained.get_piece_size()
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [trained.id_to_piece(number) for number in range(count)],
        "tokenizer.ggml.scores": [trained.get_score(number) for number in range(count)],
        "tokenizer.ggml.token_type": [int(kind(number)) for number in range(count)],
        "tokenizer.ggml.bos_token_id": trained.bos_id(),
        "tokenizer.ggml.eos_token_id": trained.eos_id(),
        "tokenizer.ggml.unknown_token_id": trained.unk_id(),
    }


@pytest.fixture(scope="module")
def spm(trained: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    return Tokenizer(tokenizer_spec(sentencepiece_metadata(trained)))


SPM_TEXTS = st.lists(st.sampled_from([*WORDS, " ", "  ", "\n", "é", "😀", "</s>", "<s>", "<unk>", "<0x41>", "12", "▁"]))


@given(SPM_TEXTS.map(" ".join) | SPM_TEXTS.map("".join) | st.text(max_size=30))
@settings(max_examples=300)
@example("")
@example(" the cat")
def test_sentencepiece_tokens_are_those_of_sentencepiece(
    spm: Tokenizer, trained: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    assert spm.encode(text) == trained.encode(text)


@given(st.lists(st.integers(0, 359), max_size=30))
@settings(max_examples=300)
def test_sentencepiece_bytes_add_up_to_the_decoded_text(spm: Tokenizer, ids: list[int]) -> None:
    ids = [number % spm.vocab_size for number in ids]
    joined = b"".join(spm.token_bytes[number] for number in ids)
    try:
        expected = joined.decode()
    except UnicodeDecodeError:
        return  # the library's decoder gives up on the whole run of bytes
    assert spm.decode(ids) == expected.removeprefix(" ")
    assert spm.decode(ids) == spm._tokenizer.decode(ids, skip_special_tokens=True)


def test_sentencepiece_prompts_begin_with_bos_and_answers_without_a_space(spm: Tokenizer) -> None:
    ids = spm.encode("the cat</s>", special=True)
    assert (ids[0], ids[-1]) == (spm.bos_token_id, spm.eos_token_ids[0])
    assert spm.strips_leading_space and spm.decode(ids) == "the cat"


def test_smollm_splits_digits_one_by_one(smollm2_path: Path) -> None:
    tokenizer = load_tokenizer(smollm2_path)
    pieces = [tokenizer.decode([number]) for number in tokenizer.encode("In 1234 it's 5")]
    assert pieces == ["In", " ", "1", "2", "3", "4", " it", "'s", " ", "5"]


# Words as the models' own tokenizer.json files cut them: written out by hand.
CUTS = {
    "llama-bpe": ("I'LL pay 12345\n\n  now!", ["I", "'LL", " pay", " ", "123", "45", "\n\n", " ", " now", "!"]),
    "qwen2": ("I'LL pay 123\n\n  now!", ["I", "'LL", " pay", " ", "1", "2", "3", "\n\n", " ", " now", "!"]),
    "gpt-2": ("I'LL pay 123\n\n  now!", ["I", "'", "LL", " pay", " 123", "\n\n ", " now", "!"]),
    "smollm": ("it's 123  now!", ["it", "'s", " ", "1", "2", "3", " ", " now", "!"]),
    "tekken": ("getHTTPBody 12/\n", ["get", "HTTPBody", " ", "1", "2", "/\n"]),
}


@pytest.mark.parametrize("pre", CUTS)
def test_pre_tokenizers_cut_words_as_the_models_do(pre: str) -> None:
    text, expected = CUTS[pre]
    made = Tokenizer(tokenizer_spec(byte_level_metadata(pre)))._tokenizer
    cuts = made.pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in cuts] == expected


def test_every_named_pre_tokenizer_loads() -> None:
    for pre in PRE_TOKENIZERS:
        tokenizer = Tokenizer(tokenizer_spec(byte_level_metadata(pre)))
        assert tokenizer.decode(tokenizer.encode("Then 123 é😀\n")) == "Then 123 é😀\n"
    assert NORMALIZERS.keys() <= PRE_TOKENIZERS.keys()


def test_byte_level_tokenizer_takes_merges_controls_and_added_tokens_from_metadata() -> None:
    tokenizer = Tokenizer(tokenizer_spec(byte_level_metadata()))
    assert tokenizer.encode("the<note><|end|>", special=True) == [257, 259, 258]
    assert 258 not in tokenizer.encode("<|end|>")
    assert tokenizer.eos_token_ids == (258,) and tokenizer.special_ids == {258}
    assert (tokenizer.vocab_size, tokenizer.max_text_bytes) == (260, 64 * 16)
    assert tokenizer.token_bytes[257:] == (b"the", b"", b"<note>")


def test_a_piece_with_too_many_cuts_is_refused(trained: sentencepiece.SentencePieceProcessor) -> None:
    metadata = sentencepiece_metadata(trained)
    metadata["tokenizer.ggml.tokens"][-1] = "a" * 20_000
    with pytest.raises(Unsupported, match="has a piece of 20000 characters; at most 256 are taken"):
        tokenizer_spec(metadata)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"tokenizer.ggml.model": "bert"}, Unsupported, "is 'bert'; known are 'gpt2' and 'llama'"),
        ({"tokenizer.ggml.pre": "novel"}, Unsupported, "'novel' is not known; known are default"),
        ({"tokenizer.ggml.tokens": None}, BrokenFile, "has no tokenizer"),
        ({"tokenizer.ggml.tokens": [1, 2]}, BrokenFile, "a list of texts is wanted"),
        ({"tokenizer.ggml.merges": None}, BrokenFile, "has no merges"),
        ({"tokenizer.ggml.merges": ["ab"]}, BrokenFile, "not two pieces"),
        ({"tokenizer.ggml.merges": ["a zz"]}, BrokenFile, "cannot be used"),
        ({"tokenizer.ggml.token_type": [1]}, BrokenFile, "one number for each of 260"),
        ({"tokenizer.ggml.eos_token_id": 260}, BrokenFile, "is 260; there are 260 tokens"),
        ({"tokenizer.ggml.model": "llama"}, BrokenFile, "has no scores"),
    ],
)
def test_bad_metadata_is_refused_in_a_sentence(changes: dict[str, Any], error: type[Refusal], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        Tokenizer(tokenizer_spec(byte_level_metadata(**changes)))
