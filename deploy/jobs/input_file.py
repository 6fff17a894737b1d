"""InputFile: which file it is a batch reads, so that a changed one is not taken for it. Knows no line's meaning."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from engine.refusal import BadRequest

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file's content in short."""

    path: Path
    num_bytes: int
    num_lines: int
    digest: str


def survey(path: Path, on_bytes: Callable[[int], None] = lambda num_bytes: None) -> InputFile:
    """Read a file once, in constant memory."""
    digest, num_bytes, num_lines, last = blake2b(digest_size=16), 0, 0, b"\n"
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                num_bytes += len(chunk)
                num_lines += chunk.count(b"\n")
                last = chunk[-1:]
                on_bytes(num_bytes)
    except OSError as trouble:
        raise BadRequest(f"{path} cannot be read: {trouble.strerror}", "input") from None
    return InputFile(path, num_bytes, num_lines + (last != b"\n"), digest.hexdigest())
