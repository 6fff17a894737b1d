"""CustomIds: where each custom_id was seen first. On disk as soon as they are many, so memory stays what it is."""

import sqlite3
from hashlib import blake2b

from deploy.jobs.troubles import CannotWrite

CACHE_KIB = 4096
DIGEST_BYTES = 16


class CustomIds:
    """A table of its own, in a temporary file that nobody else sees and that ends with its owner."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None)  # "": temporary, and on disk when it outgrows its cache
        self._table.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("CREATE TABLE seen (id BLOB PRIMARY KEY, line INTEGER NOT NULL) WITHOUT ROWID")
        self._table.execute("BEGIN")

    def first_line(self, custom_id: str, number: int) -> int:
        """The line on which this id came first: `number`, if this is it."""
        digest = blake2b(custom_id.encode(), digest_size=DIGEST_BYTES).digest()
        try:
            return self._first_line(digest, number)
        except sqlite3.OperationalError as trouble:
            raise CannotWrite(
                f"the custom_ids cannot be written to the temporary directory: {trouble}; "
                "make room there, or name another in TMPDIR"
            ) from None

    def close(self) -> None:
        self._table.close()

    def _first_line(self, digest: bytes, number: int) -> int:
        inserted = self._table.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, number))
        if inserted.rowcount:
            return number
        (first,) = self._table.execute("SELECT line FROM seen WHERE id = ?", (digest,)).fetchone()
        return int(first)
