"""AdapterRack: the adapters that a model server has: read from their folders into its engine, and kept in a book.

One that cannot be read any more is broken: known, and refused.
"""

import logging
from pathlib import Path

from actors.adapter_book import AdapterBook, BookedAdapter
from actors.model_choice import ModelChoice, function_at
from actors.progress import Progress
from actors.refusals import Unavailable
from engine.engine import Engine
from engine.refusal import Refusal

log = logging.getLogger(__name__)
READ_SECONDS = 600.0  # that reading one may take


class AdapterRack:
    """Owned by one model server."""

    def __init__(self, choice: ModelChoice, directory: Path, engine: Engine, progress: Progress) -> None:
        self.choice = choice
        self.engine = engine
        self.progress = progress
        self.book = AdapterBook(directory, dict(choice.adapters))
        self.broken: dict[str, Unavailable] = {}
        self._known = self.book.read()
        for name in self._known:
            self.load(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._known))

    def attach(self, name: str, path: str) -> Refusal | None:
        """Read it now, so that a broken one is refused here and not when it is asked for."""
        try:
            version = self._read(name, BookedAdapter(path))
        except Refusal as refusal:
            return refusal
        self._known[name] = BookedAdapter(path, version)
        self.book.enter(name, self._known[name])
        self.broken.pop(name, None)
        return None

    def detach(self, name: str) -> Refusal | None:
        try:
            self.engine.detach(name)
        except Refusal as refusal:
            if name not in self.broken:
                return refusal
        self._known.pop(name, None)
        self.broken.pop(name, None)
        self.book.strike(name)
        return None

    def load(self, name: str) -> Unavailable | None:
        """Read one that is known: at the start, or when the engine dropped it to make room and somebody needs it."""
        known = self._known[name]
        try:
            self._known[name] = BookedAdapter(known.path, self._read(name, known))
        except Refusal as refusal:
            log.warning("adapter %s is left out: %s", name, refusal.message)
            self.broken[name] = Unavailable(f"the adapter {name} cannot be served: {refusal.message}")
        return self.broken.get(name)

    def _read(self, name: str, known: BookedAdapter) -> str:
        """From its files into the engine; the version that it has."""
        self.progress.begin(READ_SECONDS)
        try:
            adapter = function_at(self.choice.read_adapter)(known.path, self.engine.model)
            if known.version not in (None, adapter.version):
                raise Unavailable("its files have changed since it was loaded; load it again")
            self.engine.attach(name, adapter)
        finally:
            self.progress.end()
        return str(adapter.version)
