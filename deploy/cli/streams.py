"""Streams: standard output and error as commands have them. Trouble with them is one sentence, or none at all.

Without its output a command has failed. Without its stderr it has lost only what it said of the way there, and goes on.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from engine.refusal import Refusal


class ReaderGone(Exception):
    """Whoever read the output has seen enough, as `head` does."""


class CannotPrint(Refusal):
    """The output has no place to go."""

    code = "cannot_print"


class Stream:
    """A stream that tells once what is wrong with it; what is written later goes nowhere."""

    def __init__(self, stream: TextIO, on_trouble: Callable[[OSError], None]) -> None:
        self._stream = stream
        self._on_trouble = on_trouble

    def write(self, text: str) -> int:
        with self._watched():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._watched():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as trouble:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # or what is still buffered would fail again as Python ends
            os.close(nowhere)
            self._on_trouble(trouble)


@contextmanager
def watched_streams() -> Iterator[None]:
    """Meanwhile trouble with sys.stdout is a ReaderGone or a CannotPrint, and with sys.stderr nothing."""
    before = sys.stdout, sys.stderr
    sys.stdout = Stream(escaping(opened(sys.stdout)), raise_trouble)
    sys.stderr = Stream(opened(sys.stderr), lambda trouble: None)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def opened(stream: TextIO | None) -> TextIO:
    """The stream, or nowhere if it was closed before Python began: the next file would get its number."""
    return open(os.devnull, "w") if stream is None else stream


def escaping(stream: TextIO) -> TextIO:
    """A letter that the terminal does not have is shown by its number."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="backslashreplace")
    return stream


def raise_trouble(trouble: OSError) -> NoReturn:
    if isinstance(trouble, BrokenPipeError):
        raise ReaderGone from None
    raise CannotPrint(f"the output cannot be written: {trouble.strerror or trouble}") from None
