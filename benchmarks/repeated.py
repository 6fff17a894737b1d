"""Benchmarks that make something happen so many times, on a Ray of their own, and print what came of it as JSON."""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors import process
from benchmarks.command_line import at_least


def run_from_command_line(doc: str | None, usual_times: int, run: Callable[[int, Path], dict[str, Any]]) -> None:
    """`run` is told how often, and gets a directory."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=at_least(1), default=usual_times)
    args = parser.parse_args()
    process.connect()
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(run(args.times, Path(directory)), indent=2))
    process.disconnect()
