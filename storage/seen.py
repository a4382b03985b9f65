"""Sets of ids whose memory is bounded: a million of them, and what is beyond that lies on disk.

Each is a temporary SQLite database, which goes when it is closed or forgotten. Ids are hexadecimal
digits, and are best given many at once: alone, one takes twice as long.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from itertools import islice
from types import TracebackType
from typing import Self, TypeVar

_AT_ONCE = 256
_CACHE_KB = 24_000  # with less, each id beyond some 100,000 costs a page read and a page written

T = TypeVar("T")


class _Table:
    """A table of its own, gone when it is closed."""

    def __init__(self, columns: str) -> None:
        self._db = sqlite3.connect("", isolation_level=None)  # "": a private temporary file
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(f"PRAGMA cache_size=-{_CACHE_KB}")
        self._db.execute(f"CREATE TABLE seen ({columns}) WITHOUT ROWID")
        self._db.execute("BEGIN")  # once and for ever: nobody else reads it, and nothing is kept

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()


class Seen(_Table):
    """Ids seen so far."""

    def __init__(self) -> None:
        super().__init__("id BLOB PRIMARY KEY")
        self._count = 0

    def add(self, ids: Collection[str]) -> set[str]:
        """Those that are new."""
        new: set[str] = set()
        for some in _parts(ids):
            found = self._db.execute(
                f"INSERT OR IGNORE INTO seen VALUES {_rows('(?)', some)} RETURNING id",  # noqa: S608
                list(map(_blob, some)),
            )
            new.update(id.hex() for (id,) in found)
        self._count += len(new)
        return new

    def update(self, ids: Iterable[str]) -> None:
        """As `add`, of a stream of any length."""
        for some in _parts(ids):
            self.add(some)

    def __contains__(self, id: str) -> bool:
        if not self._count:
            return False
        found = self._db.execute("SELECT 1 FROM seen WHERE id = ?", (_blob(id),))
        return found.fetchone() is not None

    def __len__(self) -> int:
        return self._count


class Counts(_Table):
    """How many of each id."""

    def __init__(self) -> None:
        super().__init__("id BLOB PRIMARY KEY, count INTEGER")

    def add(self, counts: Mapping[str, int]) -> dict[str, int]:
        """How many there are now of each of these."""
        now: dict[str, int] = {}
        for some in _parts(counts.items()):
            found = self._db.execute(
                f"INSERT INTO seen VALUES {_rows('(?, ?)', some)} "  # noqa: S608
                "ON CONFLICT DO UPDATE SET count = count + excluded.count RETURNING id, count",
                [value for id, count in some for value in (_blob(id), count)],
            )
            now.update((id.hex(), count) for id, count in found)
        return now

    def __len__(self) -> int:
        """Of how many ids."""
        return int(self._db.execute("SELECT count(*) FROM seen").fetchone()[0])

    def __getitem__(self, id: str) -> int:
        found = self._db.execute("SELECT count FROM seen WHERE id = ?", (_blob(id),))
        row: tuple[int] | None = found.fetchone()
        return row[0] if row else 0


def _rows(row: str, items: Sized) -> str:
    """So many rows of question marks."""
    return ",".join([row] * len(items))


def _blob(id: str) -> bytes:
    return bytes.fromhex(id)


def _parts(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, _AT_ONCE)):
        yield some
