"""ClientWords: what was refused behind the door, in the words of whoever asked: their fields and their headers."""

from collections.abc import Iterator
from contextlib import contextmanager

from actors.refusals import Conflict, UnknownRequest
from engine.refusal import Refusal


@contextmanager
def named(**names: str) -> Iterator[None]:
    """A refusal names what was sent: `with named(prompt="messages"):`"""
    try:
        yield
    except Refusal as refusal:
        if refusal.param is not None:
            refusal.param = names.get(refusal.param, refusal.param)
        raise


@contextmanager
def asked_for(prompt: str) -> Iterator[None]:
    """Of a route that answers prompts. Behind the door a request has an id; its client has given a key, or a place."""
    try:
        with named(prompt=prompt, deadline="deadline_ms"):
            yield
    except Conflict as refusal:
        if refusal.param != "id":
            raise
        raise Conflict("the Idempotency-Key belongs to a request with another body", "Idempotency-Key") from None
    except UnknownRequest:
        raise UnknownRequest("Last-Event-ID belongs to no request that is known here", "Last-Event-ID") from None
