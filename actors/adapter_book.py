"""AdapterBook: which adapters were loaded while the system ran, in a file that every life of a model server reads.

All model servers of a system write the same entries into one file. What an adapter held when it was loaded stands in
it too: a request goes on with the adapter that it began with, or not at all.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loaders.atomic_file import atomic_file
from loaders.json_file import read_json

Row = tuple[str | None, str | None, str | None]
"""Its path, or None if it was unloaded; its version; and the path that was given under its name at the start."""


@dataclass(frozen=True, slots=True)
class BookedAdapter:
    """Where an adapter's files are; `version` tells contents apart, and is None as long as none was read."""

    path: str
    version: str | None = None


class AdapterBook:
    """`given` are the adapters that the system was started with; what is loaded later under such a name goes before.

    A system that is started with other ones means these.
    """

    def __init__(self, directory: Path, given: Mapping[str, str]) -> None:
        self.path = directory / "adapters.json"
        self.given = given

    def read(self) -> dict[str, BookedAdapter]:
        """All that are known."""
        known = {name: BookedAdapter(path) for name, path in self.given.items()}
        for name, (path, version, given) in self._rows():
            if given != self.given.get(name):
                continue
            if path is None:
                known.pop(name, None)
            else:
                known[name] = BookedAdapter(path, version)
        return known

    def enter(self, name: str, adapter: BookedAdapter) -> None:
        self._write(dict(self._rows()) | {name: (adapter.path, adapter.version, self.given.get(name))})

    def strike(self, name: str) -> None:
        rows = {known: row for known, row in self._rows() if known != name}
        self._write(rows | {name: (None, None, self.given[name])} if name in self.given else rows)

    def _rows(self) -> Iterable[tuple[str, Row]]:
        return read_json(self.path).items() if self.path.exists() else ()

    def _write(self, rows: Mapping[str, Row]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as file:
            file.write(json.dumps(rows, indent=1).encode())
