"""genserve status: the supervision tree of the system that runs, and what its request and model servers are doing."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from rich.text import Text
from rich.tree import Tree

from actors import model_stats, request_server
from actors.chaos import PLACES, process_id_of
from actors.exits import CallFailed
from actors.pid import Pid
from actors.refusals import Unavailable
from actors.system import status
from deploy.cli.consoles import output
from deploy.cli.running import connected

ANSWER_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="nested objects, one a process; null if nothing runs")
    parser.add_argument("--address", default="auto", help="the Ray that it runs on")


def run(arguments: argparse.Namespace) -> int:
    seen, reason = None, "no system is running here"
    try:
        with connected(arguments.address):
            root = status()
            seen = None if root is None else looked_at(root.to_dict())
    except Unavailable as refusal:
        reason = refusal.message
    if arguments.json:
        print(json.dumps(seen))
    elif seen is None:
        print(f"genserve: nothing runs: {reason}", file=sys.stderr)
    else:
        output.print(drawn(seen))
    return 0 if seen is not None else 1


def looked_at(node: dict[str, Any]) -> dict[str, Any]:
    """A node of the tree with the number of its process on this machine, and what it says of its work."""
    pid = None if node["pid"] is None else Pid.parse(node["pid"])
    children = [looked_at(child) for child in node["children"]]
    process_id, stats = (None, None) if pid is None else (number_of(pid), stats_of(pid))
    return {**node, "process_id": process_id, "stats": stats, "children": children}


def number_of(pid: Pid) -> int | None:
    try:
        return process_id_of(pid)
    except ValueError:  # it died just now
        return None


def stats_of(pid: Pid) -> dict[str, Any] | None:
    """What a request server or a model server does; None of others, and of one that does not answer."""
    try:
        if pid.name.startswith(PLACES["request"]):
            return asdict(request_server.stats(pid, ANSWER_SECONDS))
        if pid.name.startswith(PLACES["model"]):
            return asdict(model_stats.stats(pid, ANSWER_SECONDS))
    except CallFailed:
        pass
    return None


def drawn(node: dict[str, Any]) -> Tree:
    tree = Tree(label(node))
    for child in node["children"]:
        tree.children.append(drawn(child))
    return tree


def label(node: dict[str, Any]) -> Text:
    """Text and not markup: what a process died of may have brackets in it."""
    process = "" if node["process_id"] is None else f", process {node['process_id']}"
    doing = "" if node["stats"] is None else f"  {doing_of(node['stats'])}"
    pid = f"  {node['pid'] or ''}{process}"
    return Text.assemble((node["id"], "bold"), f"  {node['state']}", (pid, "dim"), restarts_of(node), (doing, "dim"))


def restarts_of(node: dict[str, Any]) -> str:
    if not node["restarts"]:
        return ""
    times = "once" if node["restarts"] == 1 else f"{node['restarts']} times"
    return f"  restarted {times}, the last: {node['last_reason'] or 'unknown'}"


def doing_of(stats: dict[str, Any]) -> str:
    """One line: the queue of a request server, or the occupancy of a model server."""
    if "owed_tokens" in stats:
        waiting = stats["num_living"] - stats["num_on_board"]
        return f"{stats['num_on_board']} running, {waiting} waiting, {stats['owed_tokens']} tokens to do"
    engine = stats["engine"]
    return f"{engine['num_running']} rows, {engine['used_blocks']} of {engine['num_blocks']} blocks in use"
