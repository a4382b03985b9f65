"""A set of ids whose memory does not grow: what lies beyond a few MB is on disk."""

import sqlite3
from types import TracebackType
from typing import Self


class Seen:
    """Ids seen so far, in a temporary SQLite database that goes when it is closed."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # "": a private temporary file
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, id: str) -> bool:
        """True if the id is new. id: hexadecimal digits."""
        added = self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (bytes.fromhex(id),))
        return added.rowcount == 1

    def __contains__(self, id: str) -> bool:
        found = self._db.execute("SELECT 1 FROM seen WHERE id = ?", (bytes.fromhex(id),))
        return found.fetchone() is not None

    def __len__(self) -> int:
        count: int = self._db.execute("SELECT count(*) FROM seen").fetchone()[0]
        return count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()
