"""Nursery: a process that has Ray imported, and forks the workers of a Ray of our own.

A Python with Ray in it takes more than half a second of a core to begin, and a system has seven. A fork is there in a
tenth of that, and what was imported lies in memory once.

A fork has all that its parent has but the threads. So the nursery has none, nor anything that starts some: MLX is
imported but not used, and only where it has no GPU, and there is no connection to Ray. Nor has it drawn a random number
of Ray's library, of which forks would draw the same again, and take each other's objects for their own. Where it is
gone, or says nothing, workers begin as Ray has them begin.
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
from importlib import import_module, metadata
from pathlib import Path

from actors.newborn import LENGTH_BYTES, STANDARD, is_ours

IMPORTED = (
    "actors.process",
    "actors.tree",
    "actors.registry",
    "actors.request_server",
    "actors.watchdog",
    "ray._common.pydantic_compat",  # both by every worker of Ray's, where they are installed
    "starlette.datastructures",
)
WITH_MLX = ("actors.model_server", "actors.model_loading")  # a third of a second of each model server's life
ON_A_GPU = ("mlx-cuda-12", "mlx-cuda-13")  # packages; what has spoken to a GPU cannot be forked
ASKING_SECONDS = 1.0
OOM_SCORE = "RAY_worker_oom_score_adjustment"  # in the environment; Ray has set it for the process that asked


@dataclass(frozen=True, slots=True)
class Asked:
    """What a program was started with."""

    argv: list[str]
    directory: str
    environment: dict[str, str]
    standard: list[int]  # open files

    def become(self) -> None:
        """Go on as that program."""
        os.setpgid(0, 0)  # as Ray has it, which ends a worker's children with it
        for number, file in zip(STANDARD, self.standard, strict=True):
            os.dup2(file, number)
        self.close()
        os.chdir(self.directory)
        os.environ.clear()
        os.environ.update(self.environment)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(self.environment.get(OOM_SCORE, "1000"))
        sys.argv = self.argv
        sys.path.insert(1, str(Path(self.argv[0]).parent))  # behind what Ray puts first when it is imported
        runpy.run_path(self.argv[0], run_name="__main__")

    def close(self) -> None:
        for file in self.standard:
            os.close(file)


def main() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    if null:  # whoever started Ray may have closed its own input
        os.dup2(null, STANDARD[0])
        os.close(null)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(128)
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # or NumPy starts threads; a fork has the environment of who asked
        for name in IMPORTED if any(map(is_installed, ON_A_GPU)) else IMPORTED + WITH_MLX:
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
            if is_the_fork_for(asked):
                tell_or_end(caller)
                return asked


def is_the_fork_for(asked: Asked) -> bool:
    """Fork. The files of who asked are the fork's alone."""
    try:
        child = os.fork()
    except OSError:
        asked.close()
        raise
    if child:
        asked.close()
    return child == 0


def tell_or_end(caller: socket.socket) -> None:
    """Who does not wait any more has begun by itself, and there must not be two."""
    try:
        caller.sendall(b".")
    except OSError:
        os._exit(1)


def read(caller: socket.socket) -> Asked:
    """What the caller asks. OSError or ValueError if that is nothing, and then no file of its is left open."""
    if not is_ours(caller):
        raise OSError("another user asks")
    length, files, _, _ = socket.recv_fds(caller, LENGTH_BYTES, len(STANDARD))
    try:
        with caller.makefile("rb") as text:
            argv, directory, environment = json.loads(text.read(int.from_bytes(length)))
    except BaseException:
        for file in files:
            os.close(file)
        raise
    return Asked(argv, directory, environment, files)


def is_installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


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
