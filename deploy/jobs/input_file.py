"""InputFile: which file it is a batch reads, so that a changed one is not taken for it. Knows no line's meaning."""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from deploy.jobs.troubles import ChangedInput
from engine.refusal import BadRequest

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the file system says of a file; another one if anything was written since."""

    device: int
    inode: int
    num_bytes: int
    changed_at: int


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file's content in short, and its stamp from before it was read."""

    path: Path
    num_bytes: int
    num_lines: int
    digest: str
    stamp: Stamp


def survey(path: Path, on_bytes: Callable[[int], None] = lambda num_bytes: None) -> InputFile:
    """Read a file once, in constant memory. What cannot be read again, as a batch will, is refused unopened."""
    digest, num_bytes, num_lines, last = blake2b(digest_size=16), 0, 0, b"\n"
    try:
        check_regular(path)
        with path.open("rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                num_bytes += len(chunk)
                num_lines += chunk.count(b"\n")
                last = chunk[-1:]
                on_bytes(num_bytes)
    except OSError as trouble:
        raise BadRequest(f"{path} cannot be read: {trouble.strerror}", "input") from None
    return InputFile(path, num_bytes, num_lines + (last != b"\n"), digest.hexdigest(), stamp)


def looked_at_again(file: InputFile) -> InputFile:
    """The same content, read again only if its stamp is another by now. One that is gone is taken as it was."""
    try:
        stamp = stamp_of(file.path.stat())
    except OSError:
        return file
    if stamp == file.stamp:
        return file
    if stamp.num_bytes != file.num_bytes:
        raise changed_while_read(file)
    again = survey(file.path)
    if again.digest != file.digest:
        raise changed_while_read(file)
    return again


def changed_while_read(file: InputFile) -> ChangedInput:
    return ChangedInput(
        f"{file.path}, the input, changed while it was read: put back what it was and give the same command again, "
        "or name another output",
        "input",
    )


def stamp_of(status: os.stat_result) -> Stamp:
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)


def check_regular(path: Path) -> None:
    """Opening a named pipe would wait for its writer."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadRequest(
            f"{path} is no regular file; a batch reads its input twice, and again after a kill: "
            "write what a pipe brings to a file, and give that",
            "input",
        )
