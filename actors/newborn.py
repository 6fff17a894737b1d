"""Newborn: what a Ray of our own starts for a worker. Has the nursery fork one, or else becomes one itself.

Imports nothing that takes time: the whole of it is to be over in a hundredth of a second.
"""

import json
import os
import socket
import sys

NURSERY, WORKER = "GENSERVE_NURSERY", "GENSERVE_WORKER"  # in the environment: a socket, and Ray's own program
NO_RUNTIME_ENV = "--runtime-env-hash=0"
LENGTH_BYTES = 4
STANDARD = (0, 1, 2)  # input, output, errors


def main() -> None:
    worker = [os.environ[WORKER], *sys.argv[1:]]
    # What another environment asks of a program, other paths or another Python, a fork cannot give.
    if NO_RUNTIME_ENV not in worker or not is_forked(worker):
        os.execv(sys.executable, [sys.executable, *worker])


def is_forked(worker: list[str]) -> bool:
    """Whether the nursery has made a process that goes on as this one would."""
    asked = json.dumps([worker, os.getcwd(), dict(os.environ)]).encode()
    try:
        with socket.socket(socket.AF_UNIX) as nursery:
            nursery.connect(os.environ[NURSERY])
            socket.send_fds(nursery, [len(asked).to_bytes(LENGTH_BYTES)], STANDARD)
            nursery.sendall(asked)
            return nursery.recv(1) != b""
    except OSError:
        return False


if __name__ == "__main__":
    main()
