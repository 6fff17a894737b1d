"""Asking: what a client wants, in its own words -> a Request, checked; or the refusal that it deserves."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from actors.refusals import RequestPoisoned
from engine.limits import Capacity, check, check_integer, check_real
from engine.refusal import BadRequest, Refusal, UnknownAdapter
from engine.request import Request
from engine.wire import pack_request
from engine.words import sampling_of
from loaders.prompt import prompt_tokens

if TYPE_CHECKING:
    from loaders.tokenizer import Tokenizer  # clients ask without one

log = logging.getLogger(__name__)
MAX_SECONDS = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as a client says it. `prompt` is a text or token ids; `messages` is a conversation; one of them."""

    id: str
    prompt: str | tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    adapter: str | None = None
    tenant: str = ""
    priority: int = 0
    raw: bool | None = False  # the text as it stands, without the chat template
    deadline_seconds: float | None = None
    lease_seconds: float | None = 15.0  # how long it goes on while its client is silent; None: to its end
    words: Mapping[str, Any] = field(default_factory=dict)


OWN_WORDS = ("prompt", "messages", "adapter", "tenant", "priority", "raw", "deadline_seconds", "lease_seconds")


def ask_of(request_id: str, words: Mapping[str, Any]) -> Ask:
    """Keywords -> Ask; what is not its own is sampling."""
    own = {name: words[name] for name in OWN_WORDS if name in words}
    for name in ("prompt", "messages"):
        if isinstance(own.get(name), list):
            own[name] = tuple(own[name])
    return Ask(request_id, **own, words={name: value for name, value in words.items() if name not in OWN_WORDS})


def request_of(
    ask: Ask, tokenizer: "Tokenizer", capacity: Capacity, max_choices: int, adapters: Sequence[str]
) -> Request:
    """The request, within all limits.

    What nobody expected of its words is its own fault, and ends nobody else: a crash of whoever reads it would have its
    client ask the next one, and the next, until the supervisor gives up.
    """
    try:
        return _checked(ask, tokenizer, capacity, max_choices, adapters)
    except Refusal:
        raise
    except Exception as fault:
        log.exception("a request could not be read")
        raise RequestPoisoned(f"the request cannot be read: {type(fault).__name__}: {fault}") from None


def _checked(
    ask: Ask, tokenizer: "Tokenizer", capacity: Capacity, max_choices: int, adapters: Sequence[str]
) -> Request:
    for name in ("deadline_seconds", "lease_seconds"):
        if getattr(ask, name) is not None:
            check_real(name, getattr(ask, name), 0.0, MAX_SECONDS, True)
    sampling = sampling_of(ask.words)
    check_integer("n", sampling.n, 1, max_choices)
    prompt = tokens_of(ask, tokenizer)
    if sampling.max_tokens == 256 and ask.words.get("max_tokens") is None:
        sampling = replace(sampling, max_tokens=max(1, min(256, capacity.max_context - len(prompt))))
    request = Request(ask.id, prompt, sampling, ask.adapter, ask.tenant, ask.priority)
    check(request, capacity)
    if ask.adapter is not None and ask.adapter not in adapters:
        known = ", ".join(sorted(adapters)[:20]) or "none"
        raise UnknownAdapter(f"no adapter {ask.adapter[:60]!r} is attached; attached are {known}", "adapter")
    return request


def tokens_of(ask: Ask, tokenizer: "Tokenizer") -> tuple[int, ...]:
    if (ask.prompt is None) == (ask.messages is None):
        raise BadRequest("give either a prompt or messages", "prompt")
    raw = False if ask.raw is None else ask.raw
    if ask.prompt is not None:
        return prompt_tokens(tokenizer, ask.prompt, raw=raw)
    if not ask.messages or not all(isinstance(message, Mapping) for message in ask.messages):
        raise BadRequest("messages must be a list of messages, each with a role and a content", "messages")
    return prompt_tokens(tokenizer, ask.messages, raw=raw)


def body_of(request: Request) -> bytes:
    """A digest of everything that was asked, but for the id."""
    return blake2b(pack_request(replace(request, id="")), digest_size=16).digest()
