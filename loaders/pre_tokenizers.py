"""How byte-level tokenizers cut a text into words before merging, by the names that GGUF files give them.

A file holds only the name. The rules are those of the models' own tokenizer.json files.
"""

from typing import Any

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{SIGNS}|{SPACES}"
QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{SIGNS}|{SPACES}"
LARGE, SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{LARGE}*{SMALL}+|[^\r\n\p{{L}}\p{{N}}]?{LARGE}+{SMALL}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
)

Rule = dict[str, Any]  # one pre-tokenizer as tokenizer.json has it
BYTE_LEVEL: Rule = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2: Rule = BYTE_LEVEL | {"use_regex": True}
DIGITS: Rule = {"type": "Digits", "individual_digits": True}


def split(pattern: str) -> Rule:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


PRE_TOKENIZERS: dict[str, list[Rule]] = {
    **dict.fromkeys(("default", "gpt-2", "mpt", "olmo", "jais", "phi-2"), [GPT2]),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), [DIGITS, GPT2]),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe"), [split(LLAMA3), BYTE_LEVEL]),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), [split(QWEN2), BYTE_LEVEL]),
    "tekken": [split(TEKKEN), BYTE_LEVEL],
}
NFC: Rule = {"type": "NFC"}
NORMALIZERS = {"qwen2": NFC, "deepseek-r1-qwen": NFC, "stablelm2": NFC}
# A word that is itself a token is not put together from merges; these models also begin every text with BOS.
IGNORES_MERGES = ("llama-bpe", "llama3", "llama-v3", "tekken")
