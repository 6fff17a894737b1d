"""Sampling's fields, as both completion routes take them. Bounds are those of `engine.limits`, said to the world."""

from typing import Annotated, Any

from pydantic import Field

from deploy.http.payload import Fields
from engine.limits import INTEGERS, MAX_SEED, MAX_STOP_STRINGS, MAX_TOKEN_IDS, REALS
from engine.request import Sampling
from engine.words import sampling_of

MIN_SEED = -(2**63)
MAX_DEADLINE_MS = 24 * 3600 * 1000
LOW_BYTES = 256


def integer(name: str) -> Any:
    _, low, high = next(row for row in INTEGERS if row[0] == name)
    return Field(default=None, ge=low, le=high)


def real(name: str) -> Any:
    _, low, high, is_closed = next(row for row in REALS if row[0] == name)
    return Field(default=None, ge=low, le=high) if is_closed else Field(default=None, gt=low, le=high)


TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_TOKEN_IDS, fail_fast=True)]
Stop = (
    Annotated[str, Field(min_length=1)]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)]
)
Bias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_TOKEN_IDS)]


class StreamOptions(Fields):
    """What a stream says beside the answer."""

    include_usage: bool | None = None


class SamplingFields(Fields):
    """What chat and plain completions have in common."""

    model: str | None = None  # the base model, or an adapter by its name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = integer("max_tokens")
    temperature: float | None = real("temperature")
    top_p: float | None = real("top_p")
    n: int | None = integer("n")
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=MIN_SEED, le=MAX_SEED)] | None = None  # taken modulo 2**64
    presence_penalty: float | None = real("presence_penalty")
    frequency_penalty: float | None = real("frequency_penalty")
    logit_bias: Bias | None = None

    # Beyond OpenAI
    top_k: int | None = integer("top_k")
    min_p: float | None = real("min_p")
    repetition_penalty: float | None = real("repetition_penalty")
    min_tokens: int | None = integer("min_tokens")
    stop_token_ids: TokenIds | None = None
    ignore_eos: bool | None = None
    adapter: str | None = None
    priority: Annotated[int, Field(ge=-16, le=16)] | None = None  # lower goes earlier
    deadline_ms: Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS)] | None = None

    # Taken, and without effect
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None


SAME_WORDS = (
    "temperature",
    "top_p",
    "n",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
)


def sampling_from(
    fields: SamplingFields, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None
) -> Sampling:
    """The engine's settings for these fields."""
    words = {name: getattr(fields, name) for name in SAME_WORDS}
    words |= {"logprobs": logprobs, "prompt_logprobs": prompt_logprobs}
    if fields.seed is not None:
        words["seed"] = fields.seed % 2**64
    return sampling_of(words, max_tokens=max_tokens)
