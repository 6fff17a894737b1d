"""Thousands of made-up requests against the published OpenAPI document: no 5xx, no dropped connection, no lie in it.

python -m benchmarks.http_fuzz --cases 20000
python -m benchmarks.http_fuzz --cases 5000 --seed 100    # one piece of them; another seed makes others up
python -m benchmarks.http_fuzz --cases 2000 --backend system    # against processes with a tiny model in them
"""

import argparse
import multiprocessing
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from benchmarks.command_line import at_least
from benchmarks.http_servers import Settings, with_server
from tests.http_world import ScriptedBackend, served, tiny_backend

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "allow_header_conformance",
)
CASES_AN_EXAMPLE = 12  # of all operations together, about
# They stop the engine on purpose, and what follows would rightly be unavailable.
LEFT_OUT = "/v1/system/(suspend|kill_engine)"


def fuzz(url: str, examples: int, phases: str = "coverage,fuzzing", seed: int = 1) -> tuple[int, str]:
    """How many cases there were, and what was wrong with them."""
    command = [
        *(tool(), "run", f"{url}/openapi.json"),
        *("--checks", ",".join(CHECKS)),
        *("--phases", phases),
        *("--max-examples", str(examples)),
        *("--exclude-path-regex", LEFT_OUT),
        *("--request-timeout", "30", "--seed", str(seed), "--continue-on-failure", "--no-color"),
    ]
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(command, capture_output=True, text=True, cwd=directory)
    generated = re.search(r"([0-9,]+) generated", done.stdout)
    count = int(generated[1].replace(",", "")) if generated else 0
    return count, "" if done.returncode == 0 else done.stdout[-6000:] + done.stderr[-2000:]


def tool() -> str | None:
    """The command that makes them up, of this environment or of another."""
    return shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which("schemathesis")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=at_least(1), default=20_000)
    parser.add_argument("--backend", choices=("scripted", "tiny", "system"), default="scripted")
    parser.add_argument("--seed", type=at_least(0), default=1)
    arguments = parser.parse_args()
    if tool() is None:
        parser.error("schemathesis is not installed: install genserve[dev]")
    if arguments.backend == "system":
        settings = Settings("tiny", 64, 0)
        url = "http://127.0.0.1:{}"
        return int(with_server(settings, "system", lambda port, _: rounds(url.format(port), arguments)))
    with served(ScriptedBackend() if arguments.backend == "scripted" else tiny_backend()) as door:
        return rounds(door.url, arguments)


def rounds(url: str, arguments: argparse.Namespace) -> int:
    """As many cases as are wanted, some hundreds at a time."""
    total = round_number = 0
    while total < arguments.cases:
        round_number += 1
        examples = min(500, max(10, (arguments.cases - total) // CASES_AN_EXAMPLE))
        phases = "coverage,fuzzing" if round_number == 1 else "fuzzing"
        count, trouble = fuzz(url, examples, phases, arguments.seed + round_number)
        total += count
        print(f"{total} cases", flush=True)
        if trouble or not count:
            print(trouble)
            return 1
    assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
    return 0


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main())
