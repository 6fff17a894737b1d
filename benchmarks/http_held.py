"""What a server holds while it answers, and what abrupt departures leave behind in it."""

import os
import socket
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.http_clients import body_of, head

SETTLING_SECONDS = 60.0  # for what is being put away when all have gone; what is there then is a leak


def memory_of(process_id: int) -> int:
    """Resident bytes."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def departures(port: int, processes: dict[str, int], count: int) -> dict[str, float]:
    """What abrupt departures leave behind in the door and in the model server."""
    depart(port, 64)  # so that all pools have the threads that they will have
    before = held(port, processes)
    depart(port, count)
    after = held(port, processes)
    return {"departures": count} | {f"{name} left": after[name] - before[name] for name in after}


def depart(port: int, count: int) -> None:
    body = body_of(200)
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head(body) + body)
    wait_until_idle(port)
    until = time.monotonic() + SETTLING_SECONDS
    while held(port, {})["streams"] and time.monotonic() < until:
        time.sleep(0.2)


def held(port: int, processes: dict[str, int]) -> dict[str, float]:
    """What the server holds: blocks and sequences of the engine, tasks, and what each process has open."""
    found = looked(port)
    engine = found["stats"]["engine"]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        lines = client.get("/metrics").text.splitlines()
    meters = dict(line.split() for line in lines if line.startswith(("genserve_streams ", "genserve_door_tasks ")))
    counts = {
        "blocks": engine["used_blocks"],
        "sequences": engine["num_running"] + engine["num_waiting"],
        "requests": len(found["running"]),
        "streams": float(meters["genserve_streams"]),
        "the door's tasks": float(meters["genserve_door_tasks"]),
    }
    time.sleep(0.5 if processes else 0.0)  # until the connections of these looks are closed
    for name, process_id in processes.items():
        counts[f"the {name}'s descriptors"] = len(os.listdir(f"/proc/{process_id}/fd"))
        counts[f"the {name}'s threads"] = len(os.listdir(f"/proc/{process_id}/task"))
    return counts


def looked(port: int) -> Any:
    """What the system says of itself, as soon as there is room for one more connection."""
    while True:
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/system", trust_env=False, timeout=60)
        if answer.status_code != 503:
            return answer.raise_for_status().json()
        time.sleep(0.2)


def wait_until_idle(port: int, looks: int = 10) -> None:
    """Nothing runs at so many looks in turn: what was sent last may not have been read at the first."""
    idle, until = 0, time.monotonic() + SETTLING_SECONDS
    while idle < looks and time.monotonic() < until:
        idle = 0 if looked(port)["running"] else idle + 1
        time.sleep(0.2)
