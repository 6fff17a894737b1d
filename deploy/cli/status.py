"""genserve status: the supervision tree of the system that runs, and what its request and model servers are doing."""

import argparse
import json
from typing import Any

from rich.console import Console
from rich.tree import Tree

from actors.system import connect, status
from engine.refusal import Refusal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--address", default="auto", help="the Ray that it runs on")


def run(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False)
    try:
        connect(arguments.address)
        root = status()
    except Refusal:
        root = None
    if root is None:
        print(json.dumps(None) if arguments.json else "nothing runs")
        return 1
    if arguments.json:
        print(json.dumps(root.to_dict()))
    else:
        console.print(drawn(root.to_dict()))
    return 0


def drawn(node: dict[str, Any]) -> Tree:
    tree = Tree(label(node))
    for child in node["children"]:
        tree.children.append(drawn(child))
    return tree


def label(node: dict[str, Any]) -> str:
    restarts = "" if not node["restarts"] else f"  restarted {node['restarts']} times, last: {node['last_reason']}"
    return f"[bold]{node['id']}[/bold]  {node['state']}  [dim]{node['pid'] or ''}[/dim]{restarts}"
