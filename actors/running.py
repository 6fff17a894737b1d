"""Running: a request that is not finished, as those see it who watch the system."""

from dataclasses import dataclass
from typing import Literal

from actors.entry import Entry


@dataclass(frozen=True, slots=True)
class Running:
    """How far one request has come."""

    id: str
    tenant: str
    adapter: str | None
    state: Literal["waiting", "running"]
    prompt_tokens: int
    generated_tokens: int
    num_choices: int


def running_of(entry: Entry) -> Running:
    request = entry.request
    return Running(
        entry.id,
        request.tenant,
        request.adapter,
        "running" if entry.has_started else "waiting",
        len(request.prompt),
        entry.num_tokens,
        request.sampling.n,
    )
