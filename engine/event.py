"""Events: what a step tells about its requests. Plain tuples, because a step may make hundreds of them.

`position` counts a choice's own tokens from 0. A choice ends with a TokenEvent that has a finish reason or, where
its end brings no token, with ChoiceEnded.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "abort", "error"]


class TokenLogprob(NamedTuple):
    """How likely a token was, under the model's own distribution, and which others were likeliest."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Started(NamedTuple):
    """A request was taken into the batch; so many tokens of its prompt were in the cache already."""

    request_id: str
    cached_tokens: int


class PromptScored(NamedTuple):
    """The logprobs of a prompt's tokens but for the first, which has nothing before it."""

    request_id: str
    logprobs: tuple[TokenLogprob, ...]


class TokenEvent(NamedTuple):
    """One token of one choice."""

    request_id: str
    choice: int
    position: int
    token: int
    finish_reason: FinishReason | None = None
    logprob: TokenLogprob | None = None


token_event: Callable[[tuple[str, int, int, int, FinishReason | None, TokenLogprob | None]], TokenEvent]
token_event = partial(tuple.__new__, TokenEvent)  # of all fields: one is made for every token, in a third of the time


class ChoiceEnded(NamedTuple):
    """A choice ended without a further token."""

    request_id: str
    choice: int
    finish_reason: FinishReason
    message: str | None = None


class AdapterWanted(NamedTuple):
    """A waiting request needs this adapter, which is not in memory: attach it, or detach it for good."""

    name: str


Event = Started | PromptScored | TokenEvent | ChoiceEnded | AdapterWanted
EVENT_KINDS: tuple[type[Event], ...] = (Started, PromptScored, TokenEvent, ChoiceEnded, AdapterWanted)
