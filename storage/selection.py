"""Choosing a dataset's records from those of its runs.

All of it happens in a database on disk, so that memory does not grow with their number. Whatever
is chosen by chance is chosen by hashes: the same records always give the same choice, in whatever
order they came, and a few records more change few of the chosen ones.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.types import Record
from storage.datasets import SPLITS, Choice, Composition, Counts, LeftOut, Split

if TYPE_CHECKING:
    from storage.likeness import Gallery, Prints

_AT_ONCE = 64  # pictures that are looked at together

_TABLES = """
PRAGMA journal_mode=OFF;
PRAGMA synchronous=OFF;
PRAGMA temp_store=FILE;
CREATE TABLE candidates (
    id BLOB PRIMARY KEY,
    turn BLOB,           -- in whose order records are taken
    split INTEGER,       -- of SPLITS
    run TEXT,
    category TEXT,
    object TEXT,
    proposer TEXT,
    base BLOB,           -- a hash of the base prompt
    image BLOB,          -- the picture's SHA-256
    record BLOB,         -- a hash of the record
    line INTEGER
) WITHOUT ROWID;
CREATE TABLE lines (line INTEGER PRIMARY KEY, record TEXT);
CREATE TABLE chosen (id BLOB PRIMARY KEY, turn BLOB, category TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Candidate:
    """What is needed to find a picture and to compare it."""

    id: str
    run: str
    category: str
    object: str
    image_sha256: str


@dataclass(frozen=True)
class Chosen:
    """A record of the dataset."""

    id: str
    image_sha256: str
    digest: str  # of the record
    line: str  # the record, JSON


class Selection:
    """Records that may be chosen, and those that were."""

    def __init__(self, folder: Path, choice: Choice) -> None:
        """folder: has room for every such record, some KB each."""
        self._choice = choice
        file = folder / "selection.sqlite"
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.executescript(_TABLES)
        file.unlink()  # so that its room is free again however this process ends
        self._db.execute("BEGIN")  # and no end: nobody else reads it, and it goes when closed
        self._lines = self._repeated = self._near = 0

    def close(self) -> None:
        self._db.close()

    # Which there are

    def add(self, record: Record) -> None:
        """Takes it if its verdict allows; a proposal that is there already stays as it is."""
        if self._choice.verdicts == "accepted" and not record.verdict.accepted:
            return
        prompt, line = record.proposal.prompt, record.model_dump_json()
        added = self._db.execute(
            "INSERT OR IGNORE INTO candidates VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                bytes.fromhex(record.id),
                _digest(f"{self._choice.seed}\n{record.id}"),
                SPLITS.index(split_of(prompt.base, self._choice)),
                record.run,
                prompt.category,
                prompt.attributes.get("object", ""),
                record.proposal.proposer.title,
                _digest(plain(prompt.base)),
                bytes.fromhex(record.image_sha256),
                _digest(line),
                self._lines,
            ),
        )
        if added.rowcount != 1:
            self._repeated += 1
            return
        self._db.execute("INSERT INTO lines VALUES (?, ?)", (self._lines, line))
        self._lines += 1

    # Which are chosen

    def choose(
        self,
        print_of: Callable[[list[Candidate]], list["Prints"]],
        saw: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Takes records in turn, until categories and dataset have enough. There is one at least.

        print_of: the fingerprints of these candidates' pictures; asked only where near duplicates
        are looked for. saw: is told how many were looked at since the last time.
        """
        limit, total = self._limits()
        alike = self._alike()
        taken: dict[str, int] = {}
        for some in self._candidates():
            open_ = [each for each in some if taken.get(each.category, 0) < limit]
            prints = print_of(open_) if alike and open_ else [None] * len(open_)
            for candidate, print_ in zip(open_, prints, strict=True):
                count = taken.get(candidate.category, 0)
                if count >= limit or sum(taken.values()) >= total:
                    continue
                bucket = (candidate.category, candidate.object)
                if alike and print_ is not None and not alike.take(bucket, print_):
                    self._near += 1
                    continue
                taken[candidate.category] = count + 1
                id = bytes.fromhex(candidate.id)
                self._db.execute(
                    "INSERT INTO chosen SELECT id, turn, category FROM candidates WHERE id = ?",
                    (id,),
                )
            saw(len(some))
            if sum(taken.values()) >= total:
                break
        if self._choice.balance and taken:
            self._cut(min(taken.values()))

    def _limits(self) -> tuple[float, float]:
        """Pictures of each category, and in all, at most."""
        choice = self._choice
        limit = choice.per_category or float("inf")
        total = choice.quota or float("inf")
        if choice.balance:
            counts = [
                count
                for (count,) in self._db.execute(
                    "SELECT count(*) FROM candidates GROUP BY category"
                )
            ]
            limit = min(limit, *counts)
            if choice.quota:
                limit, total = min(limit, choice.quota // len(counts)), float("inf")
                if not limit:
                    raise InputError(
                        f"a balanced quota of {choice.quota} has none for each of {len(counts)} "
                        "categories: take a larger one"
                    )
        return limit, total

    def _alike(self) -> "Gallery | None":
        if self._choice.near_duplicates is None:
            return None
        from storage.likeness import Gallery

        return Gallery(self._choice.near_duplicates)

    def _cut(self, most: int) -> None:
        self._db.execute(
            "DELETE FROM chosen WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER "
            "(PARTITION BY category ORDER BY turn) AS place FROM chosen) WHERE place > ?)",
            (most,),
        )

    def _candidates(self) -> Iterator[list[Candidate]]:
        """All, in turn, some at a time."""
        found = self._db.execute(
            "SELECT hex(id), run, category, object, hex(image) FROM candidates ORDER BY turn"
        )
        while rows := found.fetchmany(_AT_ONCE):
            yield [
                Candidate(id.lower(), run, category, object_, image.lower())
                for id, run, category, object_, image in rows
            ]

    # What came of it

    def candidates(self) -> int:
        return self._count("SELECT count(*) FROM candidates")

    def chosen(self, split: Split, skip: int = 0) -> Iterator[Chosen]:
        """The chosen records of a split but for the first few, in the order of their ids."""
        found = self._db.execute(
            "SELECT hex(id), hex(image), hex(c.record), lines.record FROM chosen "
            "JOIN candidates c USING (id) JOIN lines USING (line) "
            "WHERE split = ? ORDER BY id LIMIT -1 OFFSET ?",
            (SPLITS.index(split), skip),
        )
        for id, image, digest, line in found:
            yield Chosen(id.lower(), image.lower(), digest.lower(), line)

    def digest(self) -> str:
        """Of every chosen record with its picture and its split."""
        whole = hashlib.sha256()
        for row in self._db.execute(
            "SELECT id, image, c.record, split FROM chosen JOIN candidates c USING (id) ORDER BY id"
        ):
            *hashes, split = row
            whole.update(b"".join(hashes) + bytes([split]))
        return whole.hexdigest()

    def pictures(self, split: Split) -> int:
        return self._of_split("count(*)", split)

    def base_prompts(self, split: Split) -> int:
        return self._of_split("count(DISTINCT base)", split)

    def composition(self) -> Composition:
        return Composition(
            categories=self._counts("category"),
            objects=self._counts("object"),
            proposers=self._counts("proposer"),
        )

    def left_out(self) -> LeftOut:
        chosen = self._count("SELECT count(*) FROM chosen")
        return LeftOut(
            repeated=self._repeated,
            near_duplicates=self._near,
            surplus=self.candidates() - chosen - self._near,
        )

    def samples(self, each: int, categories: int) -> Iterator[tuple[str, list[Candidate]]]:
        """A few pictures of each of the largest categories, which are in alphabetical order."""
        found = self._db.execute(
            "SELECT hex(id), run, c.category, object, hex(image) FROM (SELECT id, category, "
            "row_number() OVER (PARTITION BY category ORDER BY turn) AS place FROM chosen) "
            "JOIN candidates c USING (id) WHERE place <= ? AND c.category IN (SELECT category "
            "FROM chosen GROUP BY category ORDER BY count(*) DESC, category LIMIT ?) "
            "ORDER BY c.category, place",
            (each, categories),
        )
        rows = (Candidate(id.lower(), run, c, o, image.lower()) for id, run, c, o, image in found)
        for category, group in groupby(rows, key=lambda candidate: candidate.category):
            yield category, list(group)

    def _counts(self, column: str) -> Counts:
        counts: Counts = {}
        for name, split, count in self._db.execute(
            f"SELECT c.{column}, split, count(*) FROM chosen JOIN candidates c USING (id) "  # noqa: S608
            "GROUP BY 1, 2 ORDER BY 1, 2"
        ):
            counts.setdefault(name, {})[SPLITS[split]] = count
        return counts

    def _of_split(self, what: str, split: Split) -> int:
        return self._count(
            f"SELECT {what} FROM chosen JOIN candidates c USING (id) WHERE split = ?",  # noqa: S608
            SPLITS.index(split),
        )

    def _count(self, query: str, *values: int) -> int:
        count: int = self._db.execute(query, values).fetchone()[0]
        return count


def split_of(base: str, choice: Choice) -> Split:
    """Where a base prompt's pictures belong: by its words and the seed alone.

    So a base prompt that was for testing once is for testing in every later version.
    """
    place = int.from_bytes(_digest(f"{choice.seed}\n{plain(base)}")[:8], "big") / 2**64
    return "test" if place < choice.test_share else "train"


def plain(text: str) -> str:
    """A base prompt as it counts: without case and without what is between its words."""
    return " ".join(text.casefold().split())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
