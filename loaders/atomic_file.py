"""A file that appears whole or not at all, whatever dies meanwhile and whoever else writes it."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` for writing; it takes the name at the end, or is removed if there was an error."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name without the bytes
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
