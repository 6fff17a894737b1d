"""Limits: what a request must satisfy before anything is scheduled. One rule a line, one sentence a fault."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.refusal import BadRequest, PromptTooLong, shown
from engine.request import Request, Sampling

MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_TOKEN_IDS = 1024  # in a bias, a ban, a stop list
MAX_SEED = 2**64 - 1
MAX_NAME_BYTES = 256

# name, smallest, largest: the whole numbers
INTEGERS = (
    ("max_tokens", 0, 2**31 - 1),
    ("top_k", 0, 2**24),
    ("n", 1, MAX_CHOICES),
    ("min_tokens", 0, 2**31 - 1),
)
# name, smallest, largest, whether the smallest itself is allowed: the finite real numbers
REALS = (
    ("temperature", 0.0, 100.0, True),
    ("top_p", 0.0, 1.0, False),
    ("min_p", 0.0, 1.0, True),
    ("repetition_penalty", 0.01, 100.0, True),
    ("presence_penalty", -100.0, 100.0, True),
    ("frequency_penalty", -100.0, 100.0, True),
)
OPTIONAL_INTEGERS = (("seed", 0, MAX_SEED), ("logprobs", 0, MAX_LOGPROBS), ("prompt_logprobs", 0, MAX_LOGPROBS))
SEQUENCES = ("stop", "stop_token_ids", "banned_token_ids", "allowed_token_ids")


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one engine can take."""

    vocab_size: int
    max_context: int  # tokens of prompt and answer together


def check(request: Request, capacity: Capacity) -> None:
    """Raise the refusal that this request deserves, if any."""
    sampling = request.sampling
    check_identity(request)
    check_shapes(request)
    for name, low, high in INTEGERS:
        check_integer(name, getattr(sampling, name), low, high)
    for name, low, high in OPTIONAL_INTEGERS:
        if getattr(sampling, name) is not None:
            check_integer(name, getattr(sampling, name), low, high)
    for name, least, most, is_closed in REALS:
        check_real(name, getattr(sampling, name), least, most, is_closed)
    check_stop(sampling)
    check_token_ids(sampling, capacity.vocab_size)
    check_prompt(request, capacity)
    check_resumed(request, capacity)


def check_identity(request: Request) -> None:
    check_name("id", request.id, 1)
    check_name("tenant", request.tenant, 0)
    if request.adapter is not None:
        check_name("adapter", request.adapter, 1)
    check_integer("priority", request.priority, -16, 16)


def check_name(name: str, value: Any, least: int) -> None:
    if not isinstance(value, str) or not is_encodable(value) or not least <= len(value.encode()) <= MAX_NAME_BYTES:
        raise BadRequest(f"{name} must be a string of {least} to {MAX_NAME_BYTES} bytes; got {shown(value)}", name)


def check_shapes(request: Request) -> None:
    """A record that came from outside may hold anything in any field: lists must be lists before they are read."""
    if not isinstance(request.sampling, Sampling):
        raise BadRequest(f"sampling must be a Sampling; got {shown(request.sampling)}", "sampling")
    for name in SEQUENCES:
        value = getattr(request.sampling, name)
        if not isinstance(value, tuple | list) and not (value is None and name == "allowed_token_ids"):
            raise BadRequest(f"{name} must be a list; got {shown(value)}", name)
    if not isinstance(request.sampling.logit_bias, Mapping):
        raise BadRequest(
            f"logit_bias must map token ids to numbers; got {shown(request.sampling.logit_bias)}", "logit_bias"
        )
    if not isinstance(request.sampling.ignore_eos, bool):
        raise BadRequest(f"ignore_eos must be true or false; got {shown(request.sampling.ignore_eos)}", "ignore_eos")
    if not isinstance(request.prompt, tuple | list):
        raise BadRequest(f"the prompt must be a list of token ids; got {shown(request.prompt)}", "prompt")
    if not isinstance(request.resumed, tuple | list) or not all(isinstance(it, tuple | list) for it in request.resumed):
        raise BadRequest("resumed must be a list of token ids for each choice", "resumed")


def check_integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{name} must be a whole number from {low} to {high}; got {shown(value)}", name)


def check_real(name: str, value: Any, low: float, high: float, is_closed: bool) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (value == low and not is_closed):
        bounds = f"from {low:g} to {high:g}" if is_closed else f"above {low:g} and up to {high:g}"
        raise BadRequest(f"{name} must be a number {bounds}; got {shown(value)}", name)


def check_stop(sampling: Sampling) -> None:
    if len(sampling.stop) > MAX_STOP_STRINGS:
        raise BadRequest(f"stop takes at most {MAX_STOP_STRINGS} strings; got {len(sampling.stop)}", "stop")
    for text in sampling.stop:
        if not isinstance(text, str) or not text:
            raise BadRequest(f"a stop string must be a string that is not empty; got {shown(text)}", "stop")
        if not is_encodable(text):
            raise BadRequest(f"a stop string must be valid Unicode; got {shown(text)}", "stop")
        if len(text.encode()) > MAX_STOP_BYTES:
            raise BadRequest(f"a stop string may have {MAX_STOP_BYTES} bytes; got {len(text.encode())}", "stop")


def is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_token_ids(sampling: Sampling, vocab_size: int) -> None:
    for name, ids in id_lists(sampling):
        most = vocab_size if name == "allowed_token_ids" else MAX_TOKEN_IDS
        if len(ids) > most:
            raise BadRequest(f"{name} takes at most {most} token ids; got {len(ids)}", name)
        check_tokens(name, ids, vocab_size, name)
    for value in sampling.logit_bias.values():
        check_real("logit_bias", value, -100.0, 100.0, True)
    if not some_token_remains(sampling, vocab_size):
        raise BadRequest(
            "allowed_token_ids and banned_token_ids together leave no token to choose", "allowed_token_ids"
        )


def id_lists(sampling: Sampling) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "stop_token_ids", sampling.stop_token_ids
    yield "banned_token_ids", sampling.banned_token_ids
    yield "logit_bias", tuple(sampling.logit_bias)
    if sampling.allowed_token_ids is not None:
        yield "allowed_token_ids", sampling.allowed_token_ids


def some_token_remains(sampling: Sampling, vocab_size: int, end_ids: Collection[int] = ()) -> bool:
    """Whether anything can be chosen that is neither banned nor among `end_ids`."""
    banned = {*sampling.banned_token_ids, *end_ids}
    if sampling.allowed_token_ids is None:
        return len(banned) < vocab_size
    return bool(set(sampling.allowed_token_ids) - banned)


def check_prompt(request: Request, capacity: Capacity) -> None:
    if not request.prompt:
        raise BadRequest("the prompt is empty; at least one token is wanted", "prompt")
    wanted = len(request.prompt) + max(request.sampling.max_tokens, 0)
    if len(request.prompt) > capacity.max_context or (wanted > capacity.max_context):
        raise PromptTooLong(
            f"the prompt has {len(request.prompt)} tokens and {request.sampling.max_tokens} more are wanted; "
            f"prompt and answer together may have {capacity.max_context}",
            "prompt",
        )
    check_tokens("the prompt", request.prompt, capacity.vocab_size, "prompt")
    if request.sampling.max_tokens == 0 and request.sampling.prompt_logprobs is None:
        raise BadRequest("max_tokens 0 answers nothing unless prompt_logprobs are wanted", "max_tokens")


def check_resumed(request: Request, capacity: Capacity) -> None:
    if request.resumed and len(request.resumed) != request.sampling.n:
        raise BadRequest(f"resumed has {len(request.resumed)} choices; n is {request.sampling.n}", "resumed")
    for tokens in request.resumed:
        if len(tokens) > request.sampling.max_tokens:
            raise BadRequest(
                f"resumed has {len(tokens)} tokens; max_tokens is {request.sampling.max_tokens}", "resumed"
            )
        check_tokens("resumed", tokens, capacity.vocab_size, "resumed")


def check_tokens(name: str, ids: Collection[Any], vocab_size: int, param: str) -> None:
    """All must be ids of the vocabulary. Prompts are long: first a look at all, then for the one at fault."""
    if set(map(type, ids)) <= {int} and (not ids or (min(ids) >= 0 and max(ids) < vocab_size)):
        return
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise BadRequest(f"{name} has {shown(token)}; token ids run from 0 to {vocab_size - 1}", param)
