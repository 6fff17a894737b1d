"""Job: one HTTP request as the engine requests that answer it. Its id says how many they are, so they can be found."""

import hashlib
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from actors.asking import body_of
from actors.refusals import Conflict
from deploy.http.backend import OutOfRange, Terms
from engine.refusal import BadRequest
from engine.request import Request

PREFIXES = ("chatcmpl-", "cmpl-")
ID = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{32})(?:x([0-9]{1,3})|\.([0-9]{1,3}))?", re.ASCII)
POSITION = re.compile(r"([^:~]{1,80})~([0-9a-f]{8}):([0-9]{1,10}(?:\.[0-9]{1,10}){0,511})", re.ASCII)
KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Job:
    """What was asked in one HTTP request."""

    id: str
    model: str
    created: int
    requests: tuple[Request, ...]
    terms: Terms
    is_kept: bool = False  # it has an Idempotency-Key: its client may come back

    @property
    def num_choices(self) -> int:
        """Of each prompt."""
        return self.requests[0].sampling.n

    @property
    def num_answers(self) -> int:
        return len(self.requests) * self.num_choices


def new_stem(tenant: str, key: str | None) -> str:
    """What a job's ids have in common: made up, or of an Idempotency-Key always the same."""
    if key is None:
        return uuid.uuid4().hex
    if not KEY.fullmatch(key):
        raise BadRequest("an Idempotency-Key is 1 to 255 visible ASCII characters", "Idempotency-Key")
    return hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()[:32]


def job_id(prefix: str, stem: str, num_prompts: int) -> str:
    return f"{prefix}{stem}" + (f"x{num_prompts}" if num_prompts > 1 else "")


def request_ids(public_id: str) -> tuple[str, ...]:
    """The engine requests behind a job's id, or of one by its own; none if it is no such id."""
    match = ID.fullmatch(public_id)
    if match is None:
        return ()
    stem, count = match[1], int(match[2] or 1)
    if match[3] is not None:
        return (f"{stem}.{match[3]}",)
    return tuple(f"{stem}.{number}" for number in range(count))


def digest_of(requests: Sequence[Request]) -> str:
    """Of everything that was asked: short, since it guards against mistakes alone. A tenant finds only its own."""
    asked = b"".join(body_of(replace(request, tenant="")) for request in requests)
    return hashlib.sha256(asked).hexdigest()[:8]


def position_id(public_id: str, digest: str, had: list[int]) -> str:
    """An SSE id: whose stream it is, what was asked, and how many pieces of each answer its reader has.

    So whoever takes the stream up knows whether it is asked the same again, wherever it began.
    """
    return f"{public_id}~{digest}:{'.'.join(map(str, had))}"


def parse_position(text: str) -> tuple[str, str, list[int]]:
    """A Last-Event-ID."""
    match = POSITION.fullmatch(text)
    if match is None or not request_ids(match[1]):
        raise BadRequest("Last-Event-ID must be the id of an event of this server", "Last-Event-ID")
    return match[1], match[2], [int(number) for number in match[3].split(".")]


def check_asked_again(requests: Sequence[Request], digest: str) -> None:
    """A stream goes on for who asks the same again, not for another request."""
    if digest_of(requests) != digest:
        raise Conflict("Last-Event-ID belongs to a request with another body", "Last-Event-ID")


def split_position(had: list[int], num_choices: int, num_requests: int) -> list[tuple[int, ...]]:
    """A position by engine request."""
    if len(had) != num_choices * num_requests:
        raise OutOfRange(
            f"the position has {len(had)} parts; the stream has {num_choices * num_requests}", "Last-Event-ID"
        )
    return [tuple(had[start : start + num_choices]) for start in range(0, len(had), num_choices)]
