"""deploy/cli/status.py: how a tree is drawn."""

from typing import Any

import pytest
from rich.console import Console

from deploy.cli.status import drawn


def node(id: str, *children: dict[str, Any], **changes: Any) -> dict[str, Any]:
    still = {"pid": f"{id}/1", "state": "running", "restarts": 0, "last_reason": None, "process_id": 7, "stats": None}
    return {"id": id, **still, "children": list(children), **changes}


def shown(tree: dict[str, Any]) -> list[str]:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(drawn(tree))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_a_process_is_a_line_with_its_queue() -> None:
    stats = {"num_living": 5, "num_on_board": 3, "owed_tokens": 40}
    lines = shown(node("root", node("requests-0", stats=stats), node("models", pid=None, process_id=None)))
    assert lines == [
        "root  running  root/1, process 7",
        "├── requests-0  running  requests-0/1, process 7  3 running, 2 waiting, 40 tokens to do",
        "└── models  running",
    ]


@pytest.mark.parametrize(
    ("count", "reason", "told"),
    [
        (1, "killed", "restarted once, the last: killed"),
        (2, None, "restarted 2 times, the last: unknown"),
        (3, "KeyError: [bold] [/gone]", "restarted 3 times, the last: KeyError: [bold] [/gone]"),
    ],
)
def test_restarts_are_told_with_what_the_last_was_for(count: int, reason: str | None, told: str) -> None:
    (line,) = shown(node("model-0", restarts=count, last_reason=reason))
    assert line == f"model-0  running  model-0/1, process 7  {told}"
