"""The table of what a client expects of a server: each expectation a check that raises where it is not met."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

MESSAGES: list[Any] = [{"role": "user", "content": "Hi"}]
SECONDS = 30


@dataclass(frozen=True, slots=True)
class Target:
    """A server that is asked."""

    name: str
    url: str
    model: str
    checkpoint: Path

    @property
    def base(self) -> str:
        return f"{self.url}/v1"


Check = Callable[[Target], None]
CHECKS: list[tuple[str, str, Check]] = []


def feature(client: str, what: str) -> Callable[[Check], Check]:
    """Enter a check in the table."""

    def enter(check: Check) -> Check:
        CHECKS.append((client, what, check))
        return check

    return enter


def status_of(target: Target, path: str, content: Any = None, **more: Any) -> httpx.Response:
    method = "GET" if content is None else "POST"
    return httpx.request(method, f"{target.url}{path}", json=content, timeout=SECONDS, trust_env=False, **more)


def refusal(kind: type[Exception], ask: Callable[[], Any], otherwise: str = "it was answered") -> Any:
    """The refusal of this kind that asking brings."""
    try:
        ask()
    except kind as refused:
        return refused
    raise AssertionError(otherwise)
