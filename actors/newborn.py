"""Newborn: what a Ray of our own starts for a worker. Has the nursery fork one, or else becomes one itself.

Imports nothing that takes time, as it stands in the way of every birth.
"""

import json
import os
import socket
import struct
import sys

NURSERY, WORKER = "GENSERVE_NURSERY", "GENSERVE_WORKER"  # in the environment: a socket, and Ray's own program
NO_RUNTIME_ENV = "--runtime-env-hash=0"
LENGTH_BYTES = 4
STANDARD = (0, 1, 2)  # input, output, errors
FORK_SECONDS = 5.0
CREDENTIALS = struct.Struct("3i")  # process, user, group


def main() -> None:
    worker = [os.environ[WORKER], *sys.argv[1:]]
    # What another environment asks of a program, other paths or another Python, a fork cannot give.
    if NO_RUNTIME_ENV not in worker or not ask_for_fork(worker):
        flags = sys.orig_argv[1 : -len(sys.argv)]
        os.execv(sys.executable, [sys.executable, *flags, *worker])


def ask_for_fork(worker: list[str]) -> bool:
    """Whether there is a process now that goes on as this one would."""
    asked = json.dumps([worker, os.getcwd(), dict(os.environ)]).encode()
    try:
        with socket.socket(socket.AF_UNIX) as nursery:
            nursery.settimeout(FORK_SECONDS)
            nursery.connect(os.environ[NURSERY])
            if not is_ours(nursery):
                return False
            socket.send_fds(nursery, [len(asked).to_bytes(LENGTH_BYTES)], STANDARD)
            nursery.sendall(asked)
            return nursery.recv(1) != b""
    except OSError:
        return False


def is_ours(connection: socket.socket) -> bool:
    """Whether a process of this user is at the other end. Ray's directories can be written by everybody."""
    _, user, _ = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return bool(user == os.getuid())


if __name__ == "__main__":
    main()
