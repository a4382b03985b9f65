"""Freezing a dataset: from the accepted records of runs to a version that never changes.

Runs are read once, records are chosen on disk (storage/selection.py), and shards are written one
after the other, so memory does not grow with the number of pictures. The manifest comes last;
what a freezing that was cut off has written is taken up by the next one.
"""

import importlib.metadata
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import InputError
from pipeline.shipped import nearest
from pipeline.types import Record, digest
from storage.cards import RunFacts, facts_of, render_dataset_card
from storage.datasets import (
    CARD,
    MANIFEST,
    SHARD,
    SPLITS,
    STRIP,
    Choice,
    Datasets,
    Entry,
    File,
    Manifest,
    Split,
    check_dataset_name,
    entries_of,
    list_bytes,
    list_of,
    rows_of,
    sha256,
)
from storage.export import ImageDamaged, checked_picture, row_groups, write_shard
from storage.objects import ObjectStore, StoreError
from storage.progress import Progress
from storage.runs import RunFolder, run_names
from storage.samples import CATEGORIES, EACH, draw_samples
from storage.selection import Candidate, Chosen, Selection
from storage.spending import spending

if TYPE_CHECKING:
    from storage.likeness import Prints

SHARD_BYTES = 64 * 2**20  # kept in memory once or twice, by whoever writes or reads one
_READERS = 8  # threads that wait on the store
_AHEAD = 16  # pictures that are read before they are written


class Say(Protocol):
    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """How far a stage is: "records", "comparing" or "pictures"."""


def freeze(
    store: ObjectStore,
    name: str,
    runs: Iterable[str],
    choice: Choice,
    scratch: Path,
    *,
    title: str = "",
    license: str = "other",
    again: bool = False,
    say: Say = lambda stage, done, total: None,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[Manifest, bool]:
    """The version that these runs and this choice make, and whether it is new.

    scratch: a folder with room for the records to choose from, some KB each, and a shard.
    license: an identifier that the Hugging Face Hub knows. again: writes the version's files anew
    even if it is there, for instance because one of them was damaged.
    Raises InputError for a run that is not there, or if there is nothing to choose from, and
    ImageDamaged if a picture is gone or altered; what was there before then stays.
    """
    check_dataset_name(name)
    names = _there(store, runs)
    scratch.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(dir=scratch, prefix="dataset-") as folder,
        ThreadPoolExecutor(_READERS) as readers,
    ):
        selection = Selection(Path(folder), choice)
        try:
            facts = tuple(_read_run(RunFolder(store, run), selection, say) for run in names)
            if not (candidates := selection.candidates()):
                shown = ", ".join(names)
                what = "has a record" if choice.verdicts == "any" else "accepted any picture"
                raise InputError(f"nothing to freeze: none of {shown} {what}")
            look = _Look(store, readers)
            selection.choose(look.prints, _counting(say, "comparing", candidates))
            return _Freezing(
                Datasets(store),
                _manifest(name, facts, choice, selection, title, license),
                selection,
                look,
                Path(folder),
                say,
                shard_bytes,
            ).freeze(again)
        finally:
            selection.close()


def _there(store: ObjectStore, runs: Iterable[str]) -> list[str]:
    """The runs' names, each once, sorted: what a dataset is does not depend on their order."""
    names = sorted(set(runs))
    known = run_names(store)
    for name in names:
        if name not in known:
            others = nearest(name, known) if known else "there is none"
            raise InputError(f"no run {name!r} in {store.address}; {others}")
    return names


def _read_run(folder: RunFolder, selection: Selection, say: Say) -> RunFacts:
    progress = Progress(folder)
    numbers = count(1)

    def look(record: Record) -> None:
        selection.add(record)
        if (number := next(numbers)) % 256 == 0:
            say(f"records of {folder.name}", number, None)

    tally = progress.update(look)
    say(f"records of {folder.name}", tally.judged, tally.judged)
    return RunFacts.model_validate(
        facts_of(progress.run, tally).model_dump()
        | {"missing": tally.missing, "usage": spending(folder)}
    )


def _manifest(
    name: str,
    runs: tuple[RunFacts, ...],
    choice: Choice,
    selection: Selection,
    title: str,
    license: str,
) -> Manifest:
    """All but the files."""
    pictures = {split: selection.pictures(split) for split in SPLITS}
    if not pictures["train"]:
        raise InputError(
            f"every base prompt fell to the test split at a share of {choice.test_share:g}: take a "
            "smaller one, or another seed"
        )
    content = {
        "title": title,
        "license": license,
        "choice": choice.model_dump(),
        "runs": [run.model_dump(mode="json", exclude={"version", "usage"}) for run in runs],
        "records": selection.digest(),
    }
    return Manifest(
        name=name,
        version=digest(content)[:12],
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        ppv=importlib.metadata.version("ppv"),
        title=title,
        license=license,
        choice=choice,
        runs=runs,
        pictures=pictures,
        base_prompts={split: selection.base_prompts(split) for split in SPLITS},
        composition=selection.composition(),
        left_out=selection.left_out(),
        files=(),
    )


class _Look:
    """Pictures of runs, several at a time, each held against its hash."""

    def __init__(self, store: ObjectStore, readers: ThreadPoolExecutor) -> None:
        self._store, self._readers = store, readers

    def prints(self, candidates: list[Candidate]) -> "list[Prints]":
        # The readers only wait: threads that compute would wait for one another.
        images = self._readers.map(self.image, candidates)
        return [self._print(*each) for each in zip(candidates, images, strict=True)]

    def _print(self, candidate: Candidate, image: bytes) -> "Prints":
        from storage.likeness import fingerprint

        try:
            return fingerprint(image)
        except OSError as error:
            raise ImageDamaged(
                f"proposal {candidate.id} of run {candidate.run!r}: its picture cannot be decoded "
                f"({error})"
            ) from error

    def image(self, candidate: Candidate) -> bytes:
        return checked_picture(candidate, self._read)

    def pictures(self, chosen: Iterable[Chosen]) -> Iterator[tuple[Record, bytes]]:
        """Records with their pictures, in order; the next few are read meanwhile."""
        records = (Record.model_validate_json(each.line) for each in chosen)
        waiting: deque[tuple[Record, Future[bytes]]] = deque()
        for record in records:
            waiting.append((record, self._readers.submit(checked_picture, record, self._read)))
            if len(waiting) > _AHEAD:
                first, image = waiting.popleft()
                yield first, image.result()
        for each, image in waiting:
            yield each, image.result()

    def _read(self, which: Candidate | Record) -> bytes:
        return RunFolder(self._store, which.run).read_image(which.id)


class _Freezing:
    """A version on its way into the store."""

    def __init__(
        self,
        datasets: Datasets,
        manifest: Manifest,
        selection: Selection,
        look: _Look,
        folder: Path,
        say: Say,
        shard_bytes: int,
    ) -> None:
        self._datasets, self._manifest, self._selection = datasets, manifest, selection
        self._look, self._folder, self._shard_bytes = look, folder, shard_bytes
        self._wrote = _counting(say, "pictures", sum(manifest.pictures.values()))

    def freeze(self, again: bool) -> tuple[Manifest, bool]:
        manifest = self._manifest
        if not again and (there := self._datasets.read(manifest.name, manifest.version)):
            return there, False
        files: list[File] = []
        for split in SPLITS:
            files += self._shards(split, again)
        manifest = manifest.model_copy(update={"files": tuple(files)})
        files += [
            self._put(STRIP, draw_samples(self._samples())),
            self._put(CARD, render_dataset_card(manifest).encode()),
        ]
        manifest = manifest.model_copy(update={"files": tuple(files)})
        self._put(MANIFEST, manifest.model_dump_json(indent=1).encode())
        return manifest, True

    def _shards(self, split: Split, again: bool) -> Iterator[File]:
        """Writes a split's shards and their lists, but for those that are there."""
        done = number = 0
        if not again:
            for shard, listed in self._kept(split):
                yield from (shard, listed)
                done, number = done + shard.pictures, number + 1
                self._wrote(shard.pictures)
        passed: deque[Chosen] = deque()
        chosen = _noting(self._selection.chosen(split, done), passed)
        groups = row_groups(self._look.pictures(chosen))
        group = next(groups, None)
        while group is not None:
            path = self._folder / _shard(split, number)
            group = write_shard(path, group, groups, self._shard_bytes)
            shard, listed = self._keep(path, split, passed)
            yield from (shard, listed)
            self._wrote(shard.pictures)
            number += 1

    def _keep(self, path: Path, split: Split, passed: deque[Chosen]) -> tuple[File, File]:
        """Puts a shard and its list. passed: the chosen from the shard's first on."""
        data, name = path.read_bytes(), path.name
        path.unlink()
        entries = [_entry(passed.popleft(), split, name) for _ in range(_rows_in(data))]
        return (
            self._put(name, data, split, len(entries)),
            self._put(list_of(name), list_bytes(entries), split),
        )

    def _kept(self, split: Split) -> Iterator[tuple[File, File]]:
        """The first shards, as far as they are there already and hold what they should."""
        expected = self._selection.chosen(split)
        for number in count():
            name = _shard(split, number)
            try:
                listed, data = (self._get(path) for path in (list_of(name), name))
                entries = entries_of(listed)
                found = [(row["id"], sha256(row["image"]["bytes"])) for row in rows_of(data)]
            except StoreError:
                raise
            except Exception:  # whatever readers make of what lies there
                return
            wanted = [_entry(each, split, name) for each in islice(expected, len(entries))]
            whole = found == [(entry.id, entry.image_sha256) for entry in wanted]
            if not entries or entries != wanted or not whole:
                return
            yield (
                self._file(name, data, split, len(entries)),
                self._file(list_of(name), listed, split),
            )

    def _samples(self) -> list[tuple[str, list[bytes]]]:
        return [
            (category or "no category", [self._look.image(each) for each in some])
            for category, some in self._selection.samples(EACH, CATEGORIES)
        ]

    def _get(self, path: str) -> bytes:
        return self._datasets.store.get(self._key(path))

    def _put(self, path: str, data: bytes, split: Split | None = None, pictures: int = 0) -> File:
        self._datasets.store.put(self._key(path), data)
        return self._file(path, data, split, pictures)

    def _file(self, path: str, data: bytes, split: Split | None, pictures: int = 0) -> File:
        return File(path=path, sha256=sha256(data), bytes=len(data), split=split, pictures=pictures)

    def _key(self, path: str) -> str:
        return self._datasets.key(self._manifest.name, self._manifest.version, path)


def _counting(say: Say, stage: str, total: int) -> Callable[[int], None]:
    """A function that is told how many more are done."""
    done = [0]

    def more(number: int) -> None:
        done[0] += number
        say(stage, done[0], total)

    return more


def _shard(split: Split, number: int) -> str:
    return f"{split}-{number:05}{SHARD}"


def _entry(chosen: Chosen, split: Split, shard: str) -> Entry:
    return Entry(
        id=chosen.id,
        image_sha256=chosen.image_sha256,
        record=chosen.digest,
        split=split,
        shard=shard,
    )


def _rows_in(shard: bytes) -> int:
    import pyarrow
    from pyarrow.parquet import read_metadata

    rows: int = read_metadata(pyarrow.BufferReader(shard)).num_rows
    return rows


def _noting(chosen: Iterable[Chosen], into: "deque[Chosen]") -> Iterator[Chosen]:
    """Keeps the hashes of those that pass."""
    for each in chosen:
        into.append(replace(each, line=""))
        yield each
