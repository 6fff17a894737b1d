"""genserve chaos: kill a part of the system that runs here, to see that no client notices."""

import argparse

from actors import chaos
from deploy.cli.running import running_client
from engine.refusal import BadRequest, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="kill")
    kill = actions.add_parser("kill", help="SIGKILL one process")
    kill.add_argument("part", choices=("model", "request", "supervisor"))
    kill.add_argument("--number", type=int, default=0, help="which one, where there are several")
    kill.add_argument("--address", default="auto", help="the Ray that it runs on")


def run(arguments: argparse.Namespace) -> int:
    with running_client(arguments.address) as client:
        if client is None:
            return 1
        check_number(arguments.part, arguments.number)
        print(f"killed {chaos.kill(arguments.part, arguments.number)}")
    return 0


def check_number(part: chaos.Part, number: int) -> None:
    """A number that nobody has kills nobody. Where there is nobody at all, `chaos.kill` says so."""
    count = len(chaos.parts(part))
    if count and not 0 <= number < count:
        numbers = "0 is the only one" if count == 1 else f"they go from 0 to {count - 1}"
        raise BadRequest(f"no {part} has the number {shown(number)}: {numbers}", "number")
