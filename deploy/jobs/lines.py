"""Lines: what the lines of a batch file say: OpenAI's (custom_id, method, url, body), or plain words of ours.

A line that says nothing sound is a Fault with its number, and the others go on. What a sound line asks for is judged
where it is answered.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from deploy.http.json_body import decode_json
from deploy.jobs.custom_ids import CustomIds
from deploy.jobs.raw_lines import MAX_LINE_BYTES, RawLine
from engine.refusal import BadRequest, Refusal, Unsupported, shown

Url = Literal["/v1/chat/completions", "/v1/completions"]
URLS: tuple[Url, ...] = ("/v1/chat/completions", "/v1/completions")
OPENAI_FIELDS = ("custom_id", "method", "url", "body")
MAX_ID_BYTES = 512


@dataclass(frozen=True, slots=True)
class Line:
    """One sound line. `url` is None where the body is in our own words."""

    number: int
    custom_id: str | None
    url: Url | None
    body: Mapping[str, Any]
    seed: int  # of its number and content: for a body that says none


@dataclass(frozen=True, slots=True)
class Fault:
    """One line that cannot be asked."""

    number: int
    custom_id: str | None
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Blank:
    """One line with nothing on it."""

    number: int


def read_lines(raw: Iterable[RawLine], ids: CustomIds) -> Iterator[Line | Fault | Blank]:
    """Every line, one way or the other."""
    return (read_line(line, ids) for line in raw)


def read_line(raw: RawLine, ids: CustomIds) -> Line | Fault | Blank:
    if raw.data is not None and not raw.data.strip():
        return Blank(raw.number)
    custom_id = None
    try:
        if raw.data is None:
            raise BadRequest(f"the line has {raw.num_bytes} bytes; {MAX_LINE_BYTES} is the limit")
        said = decoded(raw.data)
        custom_id = custom_id_of(said)
        if custom_id is not None:
            check_first(custom_id, ids, raw.number)
        is_openai = any(field in said for field in ("method", "url", "body"))
        url, body = openai_line(said, custom_id) if is_openai else (None, plain_body(said))
    except Refusal as refusal:
        return Fault(raw.number, custom_id, refusal)
    return Line(raw.number, custom_id, url, body, seed_of(raw.number, raw.data))


def decoded(data: bytes) -> dict[str, Any]:
    try:
        said = decode_json(data)
    except BadRequest as refusal:  # which speaks of an HTTP body
        raise BadRequest(refusal.message.replace("the body", "the line", 1), refusal.param) from None
    if not isinstance(said, dict):
        raise BadRequest(f"a line is a JSON object; got {shown(said)}")
    return said


def custom_id_of(said: Mapping[str, Any]) -> str | None:
    custom_id = said.get("custom_id")
    if custom_id is None:
        return None
    if not isinstance(custom_id, str) or not 0 < len(custom_id.encode()) <= MAX_ID_BYTES:
        raise BadRequest(
            f"custom_id must be a string of 1 to {MAX_ID_BYTES} bytes; got {shown(custom_id)}", "custom_id"
        )
    return custom_id


def check_first(custom_id: str, ids: CustomIds, number: int) -> None:
    first = ids.first_line(custom_id, number)
    if first != number:
        raise BadRequest(f"the custom_id {shown(custom_id)} is that of line {first} already", "custom_id")


def openai_line(said: Mapping[str, Any], custom_id: str | None) -> tuple[Url, Mapping[str, Any]]:
    for field in said:
        if field not in OPENAI_FIELDS:
            raise BadRequest(f"an OpenAI line has {', '.join(OPENAI_FIELDS)}; got {field[:40]!r}", field[:40])
    if custom_id is None:
        raise BadRequest("an OpenAI line needs a custom_id", "custom_id")
    if said.get("method") != "POST":
        raise BadRequest(f"method must be 'POST'; got {shown(said.get('method'))}", "method")
    url = next((known for known in URLS if known == said.get("url")), None)
    if url is None:
        raise Unsupported(f"url must be {' or '.join(URLS)}; got {shown(said.get('url'))}", "url")
    if not isinstance(said.get("body"), dict):
        raise BadRequest(f"body must be an object of fields; got {shown(said.get('body'))}", "body")
    return url, said["body"]


def plain_body(said: Mapping[str, Any]) -> Mapping[str, Any]:
    return {field: value for field, value in said.items() if field != "custom_id"}


def seed_of(number: int, data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8, salt=number.to_bytes(8, "little")).digest(), "little")
