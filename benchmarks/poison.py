"""One request among 64 that kills the engine: the 63 end with their right text, and the supervisor does not give up.

    python -m benchmarks.poison --times 10

The supervisor is as strict as always: three restarts in five seconds, and it gives up.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from actors import system
from actors.client import Client
from actors.node import whereis
from actors.refusals import RequestPoisoned
from actors.system_config import ROOT, SystemConfig
from benchmarks.chaos import lives, wait_for
from benchmarks.repeated import run_from_command_line
from benchmarks.streams import Answer, Findings, bound, choice_of, read, requests_of_every_kind, spread, undisturbed
from engine.request import Request
from tests.serving import POISON

INNOCENT = 63


def poisoned(client: Client, number: int) -> bool:
    try:
        client.generate((*POISON, 5), id=f"poison-{number}", max_tokens=4)
    except RequestPoisoned:
        return True
    return False


def once(client: Client, number: int, requests: list[Request], expected: dict[str, Answer], found: Findings) -> bool:
    """63 streams, and the poison in the middle of them; whether it was answered as what it is."""

    def follow(request: Request) -> None:
        name = f"{request.id}/{number}"
        try:
            found.judge(name, read(client, name, request, found), expected[request.id])
        except Exception as failure:
            found.failed(name, failure)

    with ThreadPoolExecutor(INNOCENT + 1) as readers:
        streams = [readers.submit(follow, request) for request in requests]
        before = found.counts["tokens"]
        wait_for(lambda: found.counts["tokens"] > before + INNOCENT)
        is_named = readers.submit(poisoned, client, number).result()
        for stream in streams:
            stream.result()
    return is_named


def run(count: int, directory: Path) -> dict[str, Any]:
    choice = choice_of("tiny", directory)
    requests = requests_of_every_kind(INNOCENT, 40)
    expected = undisturbed(choice, requests)
    config = SystemConfig(choice, str(directory / "state"))
    client = system.start_system(config)
    found, restarts = Findings(), list[float]()
    supervisors = (whereis(ROOT), whereis(config.models_supervisor))
    num_named = 0
    for number in range(count):
        before = lives(config)
        num_named += once(client, number, requests, expected, found)
        restarts.append(lives(config) - before)
    stayed = supervisors == (whereis(ROOT), whereis(config.models_supervisor))
    client.close()
    system.stop()
    return {
        "poisonous requests answered as such": f"{num_named} of {count}",
        "others lost": bound(found.counts["lost"], found.counts["requests"]),
        "others with other tokens, text or end": bound(found.counts["different"], found.counts["requests"]),
        "restarts of the model server for one poison": spread(restarts),
        "the supervisors stayed": stayed,
        "wrong": found.wrong[:10],
    }


if __name__ == "__main__":
    run_from_command_line(__doc__, 10, run)
