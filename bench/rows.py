"""A store for millions of small objects, and the product's app with empty stages that use it.

An object is a row of SQLite, one database for each kind (prompts, records, ...), so that writers
of one kind do not wait for those of another. It counts what it is asked, page by page as S3 would.
"""

import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from bench.nothing import FolderWithoutPictures, app
from storage.listing import ANSWER
from storage.objects import ObjectNotFound, check_key, check_prefix
from workers import resources

__all__ = ["app"]

FOLDER = "BENCH_STORE"  # the environment variable that names the store's folder

_SAVED_EVERY = 256  # requests, since counting must not cost more than the work


class CountingStore:
    """Objects of runs, in a folder that processes share. A process that forks opens its own."""

    def __init__(self, folder: Path) -> None:
        self.address = folder.as_uri()
        self._folder = folder
        self._open: dict[str, sqlite3.Connection] = {}
        self._lock = threading.Lock()
        self._asked: Counter[str] = Counter()

    def put(self, key: str, data: bytes) -> None:
        with self._database(key, "put") as database:
            database.execute("INSERT OR REPLACE INTO objects VALUES (?, ?)", (key, data))

    def get(self, key: str) -> bytes:
        with self._database(key, "get") as database:
            found = database.execute("SELECT data FROM objects WHERE key = ?", (key,)).fetchone()
        if found is None:
            raise ObjectNotFound(f"no object {key!r} in {self.address}")
        data: bytes = found[0]
        return data

    def exists(self, key: str) -> bool:
        with self._database(key, "head") as database:
            found = database.execute("SELECT 1 FROM objects WHERE key = ?", (key,))
            return found.fetchone() is not None

    def list(self, prefix: str) -> Iterator[str]:
        last, end = check_prefix(prefix), prefix + "\x7f"
        while True:
            with self._database(prefix, "list") as database:
                keys: list[tuple[str]] = database.execute(
                    "SELECT key FROM objects WHERE key > ? AND key < ? ORDER BY key LIMIT ?",
                    (last, end, ANSWER),
                ).fetchall()
            for (key,) in keys:
                yield key
            if len(keys) < ANSWER:
                return
            last = keys[-1][0]

    def folders(self, key: str) -> Iterator[str]:
        raise NotImplementedError("no run is looked for here")

    def delete(self, key: str) -> None:
        with self._database(key, "delete") as database:
            database.execute("DELETE FROM objects WHERE key = ?", (check_key(key),))

    # What a measurement wants to know

    def written(self, kind: str) -> int:
        """Objects of a kind that were ever put; none is put twice here but for run.json."""
        with self._database(f"runs/run/{kind}/", "") as database:
            count: int | None = database.execute("SELECT max(rowid) FROM objects").fetchone()[0]
        return count or 0

    def forget_half(self, kind: str) -> None:
        """Delete what was written last."""
        half = self.written(kind) // 2
        with self._database(f"runs/run/{kind}/", "") as database:
            database.execute("DELETE FROM objects WHERE rowid > ?", (half,))

    def requests(self) -> dict[str, int]:
        """By verb and kind, of all processes; each of them may still keep a few to itself."""
        with self._database("runs/run/requests/", "") as database:
            return dict(database.execute("SELECT key, data FROM objects ORDER BY key"))

    def _database(self, key: str, verb: str) -> "_Locked":
        kind = key.split("/")[2].partition(".")[0]
        if verb:
            self._asked[f"{verb} {kind}"] += 1
            if self._asked.total() >= _SAVED_EVERY:
                self._save()
        return _Locked(self._lock, self._connection(kind))

    def _connection(self, kind: str) -> sqlite3.Connection:
        with self._lock:
            if kind not in self._open:
                database = sqlite3.connect(
                    self._folder / f"{kind}.sqlite",
                    timeout=120,
                    isolation_level=None,
                    check_same_thread=False,
                )
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=OFF")
                database.execute(
                    "CREATE TABLE IF NOT EXISTS objects (key TEXT PRIMARY KEY, data BLOB)"
                )
                self._open[kind] = database
            return self._open[kind]

    def _save(self) -> None:
        asked, self._asked = self._asked, Counter()
        with self._database("runs/run/requests/", "") as database:
            for what, count in asked.items():
                database.execute(
                    "INSERT INTO objects VALUES (?, ?) "
                    "ON CONFLICT DO UPDATE SET data = data + excluded.data",
                    (what, count),
                )


class _Locked:
    """One connection for all threads of a process, for one of them at a time."""

    def __init__(self, lock: threading.Lock, database: sqlite3.Connection) -> None:
        self._lock, self._database = lock, database

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        return self._database

    def __exit__(self, *error: object) -> None:
        self._lock.release()


@lru_cache(maxsize=64)
def _folder(run: str) -> FolderWithoutPictures:
    return FolderWithoutPictures(CountingStore(Path(os.environ[FOLDER])), run)


if FOLDER in os.environ:
    resources.folder = _folder
