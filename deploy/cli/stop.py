"""genserve stop: end the system that runs here, in reverse order of its start."""

import argparse

from actors.system import stop
from deploy.cli.running import running_client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--now", action="store_true", help="do not wait for answers under way; they stay in the journal"
    )
    parser.add_argument("--address", default="auto", help="the Ray that it runs on")


def run(arguments: argparse.Namespace) -> int:
    with running_client(arguments.address) as client:
        if client is None:
            return 1
        if not arguments.now:
            client.drain()
        stop()
    return 0
