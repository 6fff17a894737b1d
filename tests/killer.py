"""`python -m tests.killer ADDRESS`: for each line read, SIGKILL the model server of the system there, and say so."""

import sys

from actors import chaos
from actors.process import connect
from actors.refusals import Unavailable

if __name__ == "__main__":
    connect(sys.argv[1])
    for _ in sys.stdin:
        try:
            print(chaos.kill("model"), flush=True)
        except (Unavailable, ProcessLookupError, ValueError) as trouble:  # it is dead already
            print(f"none: {trouble}", flush=True)
