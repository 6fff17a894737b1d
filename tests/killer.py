"""`python -m tests.killer ADDRESS`: says "ready"; for each line read, SIGKILLs the model server there, and says so."""

import sys
import time

from actors import chaos
from actors.process import connect
from actors.refusals import Unavailable

PATIENCE_SECONDS = 10.0  # with one that is dead already, until the next one lives


def kill() -> str:
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return chaos.kill("model")
        except (Unavailable, ProcessLookupError, ValueError) as trouble:
            if time.monotonic() > until:
                return f"none: {trouble}"
            time.sleep(0.05)


if __name__ == "__main__":
    connect(sys.argv[1])
    print("ready", flush=True)
    for _ in sys.stdin:
        print(kill(), flush=True)
