"""Compiler: a kernel's text -> machine code for this GPU, through NVRTC, and kept on disk for the next start.

MLX compiles the texts that it is given again in every process, with headers of its own, and takes two seconds for
each. Without them it is a third of a second, once. The compiler takes one text of a process at a time, so a first start
has many texts compiled by processes of their own, which have no more than this file and the library.
"""

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

MAJOR, MINOR = 75, 76  # CUdevice_attribute


class CompileError(Exception):
    """The compiler did not take a text."""


@cache
def capability() -> tuple[int, int]:
    """The compute capability of the first GPU; (0, 0) where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, 0
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return 0, 0
    for value, attribute in ((major, MAJOR), (minor, MINOR)):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return major.value, minor.value


def missing_reason() -> str | None:
    """Why the kernels cannot run on this machine; None if they can."""
    major, minor = capability()
    if major == 9:
        return None
    return f"the CUDA kernels are written for compute capability 9 (H100, H200); this GPU has {major}.{minor}"


@cache
def nvrtc(path: str = "") -> ctypes.CDLL:
    """The library at `path`, or the one that MLX brought into this process."""
    return ctypes.CDLL(path or path_of_nvrtc())


@cache
def path_of_nvrtc() -> str:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split()[-1] for line in lines if "/libnvrtc.so" in line)


def machine_code(text: str) -> bytes:
    """The kernel's code: from the disk if it was compiled before."""
    kept = place_of(text)
    try:
        return kept.read_bytes()
    except OSError:
        code = compiled(text, target(), nvrtc())
        keep(kept, code)
        return code


def compile_together(texts: Iterable[str]) -> None:
    """Those that are not on the disk yet, by as many processes as there are cores; who fails leaves it to the next."""
    missing = [(str(place), text) for text in dict.fromkeys(texts) if not (place := place_of(text)).exists()]
    count = min(len(missing), len(os.sched_getaffinity(0)))
    if count < 2:
        return
    command = [sys.executable, __file__, path_of_nvrtc(), target()]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(count)]
    missing.sort(key=lambda one: len(one[1]), reverse=True)
    for index, worker in enumerate(workers):
        assert worker.stdin
        worker.stdin.write(json.dumps(missing[index::count]).encode())
        worker.stdin.close()
    for worker in workers:
        worker.wait()


def target() -> str:
    major, minor = capability()
    return f"sm_{major}{minor}a"  # `a`: with what only this generation has


def place_of(text: str) -> Path:
    """Where a kernel's code is kept, once it was compiled."""
    version = [ctypes.c_int(), ctypes.c_int()]
    nvrtc().nvrtcVersion(*map(ctypes.byref, version))
    key = f"{target()} {version[0].value}.{version[1].value}\n{text}"
    return folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.cubin"


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genserve" / "cuda"


def keep(path: Path, code: bytes) -> None:
    """Whole or not at all; a disk that takes nothing only makes the next start slower."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(code)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)


def compiled(text: str, target: str, library: ctypes.CDLL) -> bytes:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"genserve.cu", 0, None, None)
    try:
        options = (f"--gpu-architecture={target}", "--std=c++17", "--device-as-default-execution-space")
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), given):
            library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value + 1)
            library.nvrtcGetProgramLog(program, log)
            raise CompileError(log.value.decode(errors="replace"))
        library.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        library.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


if __name__ == "__main__":  # one of those who compile together
    for place, text in json.load(sys.stdin):
        keep(Path(place), compiled(text, sys.argv[2], nvrtc(sys.argv[1])))
