"""genserve, the command: finds the command's file, and turns refusals into one sentence and exit code 2."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from deploy.cli.streams import ReaderGone, watched_streams
from engine.refusal import Refusal, Unsupported

COMMANDS = {
    "post": "print posts that a model writes",
    "inspect": "show what a model is made of, and which adapters fit it",
    "quantize": "turn a float checkpoint into one of a few bits a weight",
    "batch": "answer the prompts of a file into another file",
    "bench": "measure throughput and latency of a mixed load",
    "serve": "run the whole system: supervised, and kept through crashes",
    "status": "show the supervision tree of the system that runs",
    "stop": "end the system that runs",
    "chaos": "kill a part of the system that runs, to see that nobody notices",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code says how it went."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with watched_streams():
        return max(exit_code(lambda: run(given)), exit_code(print_all))


def exit_code(act: Callable[[], int]) -> int:
    try:
        return act()
    except Refusal as refusal:
        print(f"genserve: {refusal.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except ReaderGone:
        return 0
    except SystemExit as ending:  # of argparse, or after SIGTERM
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)


def print_all() -> int:
    """Have out what is still buffered, while trouble with it can be told."""
    sys.stdout.flush()
    return 0


def run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="genserve",
        description="Language models, served the way Elixir serves processes.",
        epilog="`genserve COMMAND --help` tells more of a command.",
    )
    parser.add_argument("--version", action="store_true", help="show which genserve this is, and exit")
    if arguments[:1] == ["--version"]:
        from importlib.metadata import version  # what no other command has to wait for

        print(f"genserve {version('genserve')}")
        return 0
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:  # the others' files, and what they import, are not needed
            command = import_command(name)
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))


def import_command(name: str):  # type: ignore[no-untyped-def]  # a module is the type
    try:
        return import_module(f"deploy.cli.{name}")
    except ImportError as error:
        if "mlx" in str(error):
            raise Unsupported(
                "MLX has no backend in this environment: install genserve[cpu], genserve[cuda12] or genserve[cuda13]"
            ) from error
        raise


if __name__ == "__main__":
    sys.exit(main())
