"""Turnstile: what a client was told to come back with later, so that until then it is refused here, at no cost.

A system that is offered twenty times its load would else spend itself on saying no. Refused here is only what asks for
no less than a request that was refused there a moment ago, and only if it is new: one that was accepted once is always
let through to hear of its answer.
"""

import time
from dataclasses import dataclass

from actors.asking import Ask
from actors.refusals import Overloaded

MOST_SECONDS = 1.0  # then it is asked again, whatever was said


@dataclass(frozen=True, slots=True)
class Closed:
    until: float
    prompt_size: int
    refusal: Overloaded


class Turnstile:
    """One for each partition that a client asks."""

    def __init__(self) -> None:
        self._closed: dict[str, Closed] = {}

    def check(self, ask: Ask) -> None:
        """Refuse what was refused just now."""
        closed, now = self._closed.get(kind_of(ask)), time.monotonic()
        if closed is not None and now < closed.until and prompt_size(ask) >= closed.prompt_size:
            raise Overloaded(closed.refusal.message, closed.refusal.param, closed.until - now)

    def close(self, ask: Ask, refusal: Overloaded) -> None:
        """The system refused this one."""
        now = time.monotonic()
        self._closed = {kind: closed for kind, closed in self._closed.items() if closed.until > now}
        until = now + min(refusal.retry_after_seconds, MOST_SECONDS)
        self._closed[kind_of(ask)] = Closed(until, prompt_size(ask), refusal)


def kind_of(ask: Ask) -> str:
    """What a request's cost and its patience depend on, but for its prompt; nobody has checked these words yet."""
    return repr((ask.deadline_seconds, ask.priority, ask.words.get("max_tokens"), ask.words.get("n")))


def prompt_size(ask: Ask) -> int:
    """In whatever it is given in; only compared with others of its kind."""
    return len(ask.prompt) if isinstance(ask.prompt, str | tuple) else len(repr(ask.messages))
