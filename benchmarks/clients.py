"""Real clients against a server, feature by feature: ours, and `mlx_lm.server` with the same checkpoint beside it.

    python -m benchmarks.clients                 # prints the table
    python -m benchmarks.clients --write         # and writes docs/clients.md

A feature is there if the client's own call succeeds and its result is right; the checks stand in
`benchmarks/checks/`.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx

from benchmarks.checks import CHECKS, Check, Target, status_of
from tests.tiny import write_checkpoint
from tests.tiny_tokenizer import write_tokenizer

PAGE = Path(__file__).parent.parent / "docs" / "clients.md"
PACKAGES = ("openai", "langchain-openai", "litellm", "llm", "lm-eval", "mlx-lm")
DEATH = "it answered nobody afterwards"


@contextmanager
def ours(checkpoint: Path) -> Iterator[Target]:
    """The whole system of processes."""
    state = ("--directory", str(checkpoint.parent / "state"))
    command = [sys.executable, "-m", "deploy.cli.main", "serve", "--model", str(checkpoint), *state, "--port"]
    with running("genserve", command, checkpoint.name, checkpoint) as target:
        yield target


@contextmanager
def mlx_lm(checkpoint: Path) -> Iterator[Target]:
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(checkpoint), "--port"]
    with running("mlx_lm.server", command, "default_model", checkpoint) as target:
        yield target


@contextmanager
def running(name: str, command: list[str], model: str, checkpoint: Path) -> Iterator[Target]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hub = checkpoint / "hub"  # mlx_lm lists what lies in it, and wants it to be there
    hub.mkdir(exist_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub)}
    process = subprocess.Popen(
        [*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    target = Target(name, f"http://127.0.0.1:{port}", model, checkpoint)
    try:
        wait_until_it_answers(target)
        yield target
    finally:
        process.terminate()
        process.wait(60)


def wait_until_it_answers(target: Target) -> None:
    for _ in range(600):
        if answers(target):
            return
        time.sleep(0.2)
    raise AssertionError(f"{target.name} did not start")


def verdicts(make: Callable[[Path], Any], checkpoint: Path) -> tuple[str, list[str | None]]:
    """Why each check failed, or None; a server that does not survive one is started again for the next."""
    found: list[str | None] = []
    with ExitStack() as stack:
        target = stack.enter_context(make(checkpoint))
        for _, _, check in CHECKS:
            trouble = tried(check, target)
            if not answers(target):
                trouble = f"{DEATH}; {trouble}"
                stack.close()
                target = stack.enter_context(make(checkpoint))
            found.append(trouble)
    return target.name, found


def tried(check: Check, target: Target) -> str | None:
    """Why it failed, or None."""
    try:
        check(target)
    except Exception as trouble:  # whatever a client throws is its verdict
        told = f"{type(trouble).__name__}: {trouble}".strip(": ").splitlines()[0][:90]
        return told.replace(target.url, "")  # its port is another one every time
    return None


def answers(target: Target) -> bool:
    """Whether it still does what it did at first."""
    try:
        return status_of(target, "/v1/completions", {"model": target.model, "prompt": "x", "max_tokens": 1}).is_success
    except httpx.TransportError:
        return False


def table(results: dict[str, list[str | None]]) -> str:
    names = list(results)
    lines = [f"| client | feature | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for row, (client, what, _) in enumerate(CHECKS):
        marks = [mark(results[name][row]) for name in names]
        lines.append(f"| {client} | {what} | {' | '.join(marks)} |")
    totals = [f"{sum(result is None for result in results[name])} of {len(CHECKS)}" for name in names]
    return "\n".join([*lines, f"| | | {' | '.join(totals)} |"])


def mark(trouble: str | None) -> str:
    return "yes" if trouble is None else "no †" if trouble.startswith(DEATH) else "no"


def page_of(results: dict[str, list[str | None]]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    reasons = [
        f"- {name}, {what}: `{results[name][row]}`"
        for name in results
        for row, (_, what, _) in enumerate(CHECKS)
        if results[name][row] is not None
    ]
    return HEAD + table(results) + f"\n\nWith {versions}.\n\n## Why not\n\n" + "\n".join(reasons) + "\n"


def is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


HEAD = """# Clients

What real clients get from `genserve serve`, and from `mlx_lm.server` with the same checkpoint. The table is made by a
command, and the checks stand in `benchmarks/checks/`:

```
python -m benchmarks.clients --write
```

"Strict" is the official package with `_strict_response_validation=True`: it checks every answer against its own types.
Two things are checked without it, because it forbids nulls that OpenAI itself sends: the missing score of an echoed
prompt's first token, and the missing finish reason in a streamed completion's chunks. † means that the server answered
nobody after this check, and was started again for the next one.

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_mutually_exclusive_group()  # the page has both
    parts.add_argument("--write", action="store_true", help="write docs/clients.md")
    parts.add_argument("--only", choices=("genserve", "mlx_lm"))
    arguments = parser.parse_args()
    if absent := [name for name in PACKAGES if not is_installed(name)]:
        parser.error(f"clients that are not installed would count against the servers: {', '.join(absent)}")
    warnings.simplefilter("ignore")
    results: dict[str, list[str | None]] = {}
    with tempfile.TemporaryDirectory() as directory:
        settings = {"group_size": 32, "bits": 4}
        checkpoint = write_checkpoint(Path(directory, "tiny"), "llama", settings, max_position_embeddings=4096)
        write_tokenizer(checkpoint, tokenizer_class="PreTrainedTokenizerFast")
        for make in (ours, mlx_lm):
            if arguments.only in (None, "genserve" if make is ours else "mlx_lm"):
                name, results_of_one = verdicts(make, checkpoint)
                results[name] = results_of_one
    print(page_of(results))
    if arguments.write:
        PAGE.write_text(page_of(results))


if __name__ == "__main__":
    main()
