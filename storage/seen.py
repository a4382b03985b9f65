"""Sets of ids whose memory does not grow: what lies beyond a few MB is on disk."""

import sqlite3
from types import TracebackType
from typing import Self


class Seen:
    """Ids seen so far, in a temporary SQLite database that goes when it is closed."""

    def __init__(self) -> None:
        self._db = _database("id BLOB PRIMARY KEY")
        self._count = 0

    def add(self, id: str) -> bool:
        """True if the id is new. id: hexadecimal digits."""
        added = self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (bytes.fromhex(id),))
        self._count += added.rowcount
        return added.rowcount == 1

    def __contains__(self, id: str) -> bool:
        if not self._count:
            return False
        found = self._db.execute("SELECT 1 FROM seen WHERE id = ?", (bytes.fromhex(id),))
        return found.fetchone() is not None

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()


class Counts:
    """How many of each id, kept in the same way."""

    def __init__(self) -> None:
        self._db = _database("id BLOB PRIMARY KEY, count INTEGER")

    def add(self, id: str, count: int) -> None:
        self._db.execute(
            "INSERT INTO seen VALUES (?, ?) ON CONFLICT DO UPDATE SET count = count + ?",
            (bytes.fromhex(id), count, count),
        )

    def __getitem__(self, id: str) -> int:
        found = self._db.execute("SELECT count FROM seen WHERE id = ?", (bytes.fromhex(id),))
        row: tuple[int] | None = found.fetchone()
        return row[0] if row else 0


def _database(columns: str) -> sqlite3.Connection:
    database = sqlite3.connect("", isolation_level=None)  # "": a private temporary file
    database.execute("PRAGMA journal_mode=OFF")
    database.execute("PRAGMA synchronous=OFF")
    database.execute(f"CREATE TABLE seen ({columns}) WITHOUT ROWID")
    database.execute("BEGIN")  # once and for ever: nobody else reads it, and nothing is kept
    return database
