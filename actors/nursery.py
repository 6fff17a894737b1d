"""Nursery: a process that has Ray imported, and forks the workers of a Ray of our own.

A Python with Ray in it takes more than half a second of a core to begin, and a system has seven. A fork is there in a
tenth of that, and what was imported lies in memory once.

A fork has all that its parent has but the threads. So the nursery has none, nor anything that starts some: no MLX, and
no connection to Ray. Nor has it drawn a random number of Ray's library, of which forks would draw the same again, and
take each other's objects for their own. Whatever is wrong with it, it ends, and workers begin as Ray has them begin.
"""

import gc
import json
import os
import runpy
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from actors.newborn import LENGTH_BYTES, STANDARD

IMPORTED = (
    "actors.process",
    "actors.tree",
    "actors.registry",
    "actors.request_server",
    "actors.watchdog",
    "ray._common.pydantic_compat",  # both by every worker of Ray's, where they are installed
    "starlette.datastructures",
)
ASKING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a program was started with."""

    argv: list[str]
    directory: str
    environment: dict[str, str]
    standard: list[int]  # open files

    def become(self) -> None:
        """Go on as that program."""
        for number, file in zip(STANDARD, self.standard, strict=True):
            os.dup2(file, number)
            os.close(file)
        os.chdir(self.directory)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv = self.argv
        sys.path[0] = str(Path(self.argv[0]).parent)
        runpy.run_path(self.argv[0], run_name="__main__")


def main() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(128)
        for name in IMPORTED:
            with suppress(ImportError):
                import_module(name)
        if num_threads() > 1 or len({drawn_in_a_fork() for _ in range(2)}) < 2:
            return
        gc.freeze()  # what is never looked at again is never copied
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for a child
        asked = attend(listener)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked.become()


def attend(listener: socket.socket) -> Asked:
    """Fork for everyone who asks. Returns in the forks, and only there."""
    while True:
        caller, _ = listener.accept()
        caller.settimeout(ASKING_SECONDS)
        with caller, suppress(OSError, ValueError):
            asked = read(caller)
            if os.fork() == 0:
                return asked
            for file in asked.standard:
                os.close(file)
            caller.sendall(b".")


def read(caller: socket.socket) -> Asked:
    length, files, _, _ = socket.recv_fds(caller, LENGTH_BYTES, len(STANDARD))
    with caller.makefile("rb") as text:
        argv, directory, environment = json.loads(text.read(int.from_bytes(length)))
    return Asked(argv, directory, environment, files)


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def drawn_in_a_fork() -> bytes:
    """The first id that Ray's library makes up there."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, sys.modules["ray"].ObjectID.from_random().binary())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as drawn:
        found = drawn.read()
    os.wait()
    return found


if __name__ == "__main__":
    main()
