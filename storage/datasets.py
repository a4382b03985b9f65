"""Frozen datasets. The only place that spells their keys.

    datasets/<name>/<version>/manifest.json           what it is, and a hash of every file below;
                                                      written last, so that it stands for a whole
    datasets/<name>/<version>/<split>-00000.parquet   pictures with their prompts and records
    datasets/<name>/<version>/<split>-00000.jsonl.gz  the list of that shard: ids and hashes
    datasets/<name>/<version>/README.md, strip.png    the card and its pictures

The version is the beginning of a hash of all that a dataset holds and says of itself: the same
records, chosen in the same way, are the same version. The pictures of a split stand in the order
of their ids, which are hashes: as good as shuffled, and two versions compare as streams.
"""

import gzip
import hashlib
import heapq
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.errors import InputError
from pipeline.shipped import nearest
from pipeline.types import Frozen, Id, ModelName, Record
from storage.cards import Count, RunFacts
from storage.export import MARK, SUMS, replaced
from storage.objects import ObjectNotFound, ObjectStore

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

MANIFEST = "manifest.json"
CARD = "README.md"
STRIP = "strip.png"
SHARD = ".parquet"
LIST = ".jsonl.gz"  # the hub keeps such files apart from the commit that adds them

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]

_NAME = TypeAdapter(ModelName)


class DatasetDamaged(InputError):
    """An object of a frozen dataset is missing, or is not what was frozen."""


class Choice(Frozen):
    """How a dataset's records are chosen from those of its runs."""

    verdicts: Literal["accepted", "any"] = "accepted"  # any: also what the verifier rejected
    per_category: Annotated[int, Field(ge=1)] | None = None  # pictures of each category at most
    quota: Annotated[int, Field(ge=1)] | None = None  # pictures in all at most
    balance: bool = False  # every category as many as the smallest has
    near_duplicates: Annotated[int, Field(ge=0, le=64)] | None = None
    """The distance up to which two pictures of one category and object count as one, in bits of
    storage.likeness; None: all are kept."""
    test_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05  # of the base prompts
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # another one chooses and splits otherwise


class Entry(Frozen):
    """A line of a shard's list: one picture."""

    id: Id  # of the proposal
    image_sha256: Sha256
    record: Id  # a hash of the record as its run's store has it
    split: Split
    shard: str


class File(Frozen):
    """One object of a dataset."""

    path: str
    sha256: Sha256
    bytes: Count
    split: Split | None = None  # of a shard, or of its list
    pictures: Count = 0  # in a shard

    @property
    def is_shard(self) -> bool:
        return self.path.endswith(SHARD)


Counts = dict[str, dict[Split, Count]]


class Composition(Frozen):
    """Pictures by split, within each category, object and proposer."""

    categories: Counts
    objects: Counts  # "": of no object that the prompter named
    proposers: Counts


class LeftOut(Frozen):
    """Accepted records that are not in the dataset, and why."""

    repeated: Count = 0  # the same proposal in another of the runs
    near_duplicates: Count = 0  # like a picture that was taken
    surplus: Count = 0  # beyond a quota or the balance; not all of them were compared


class Manifest(Frozen):
    """What a version is. Whoever has it can check everything else."""

    name: ModelName
    version: Version
    created_at: str  # ISO 8601, UTC
    ppv: str  # the version of this project that wrote it
    title: str
    license: str
    choice: Choice
    runs: Annotated[tuple[RunFacts, ...], Field(min_length=1)]
    pictures: dict[Split, Count]
    base_prompts: dict[Split, Count]
    composition: Composition
    left_out: LeftOut
    files: tuple[File, ...]

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def shards(self, split: Split) -> list[File]:
        return [file for file in self.files if file.is_shard and file.split == split]

    def lists(self, split: Split) -> list[File]:
        return [f for f in self.files if f.path.endswith(LIST) and f.split == split]


@dataclass(frozen=True)
class Example:
    """One picture of a dataset with its prompt."""

    id: str
    image: bytes  # PNG, as it was drawn
    prompt: str  # the detailed prompt
    base_prompt: str
    category: str
    provenance: str  # the whole record, JSON

    @cached_property
    def record(self) -> Record:
        return Record.model_validate_json(self.provenance)


class Datasets:
    """Datasets by name and version."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def names(self) -> list[str]:
        return sorted(self.store.folders("datasets"))

    def versions(self, name: str) -> list[Manifest]:
        """All that are whole, the newest first."""
        check_dataset_name(name)
        found = (self.read(name, version) for version in self.store.folders(f"datasets/{name}"))
        whole = [each for each in found if each is not None]
        return sorted(whole, key=lambda each: (each.created_at, each.version), reverse=True)

    def find(self, reference: str) -> Manifest:
        """NAME@VERSION, the version's beginning being enough, or the newest of NAME.

        Raises InputError with what there is instead.
        """
        name, at, version = reference.partition("@")
        there = self.versions(name)
        chosen = [each for each in there if each.version.startswith(version)]
        if at and not version:
            raise InputError(f"dataset {reference!r}: write NAME or NAME@VERSION")
        if chosen and (not at or len(chosen) == 1):
            return chosen[0]
        if chosen:
            several = ", ".join(each.version for each in chosen)
            raise InputError(f"dataset {reference!r} may be several: {several}")
        where = f"in {self.store.address}"
        if there:
            known = [each.version for each in there]
            raise InputError(
                f"no version {version!r} of {name!r} {where}; {nearest(version, known)}"
            )
        known = [each for each in self.names() if self.versions(each)]
        if not known:
            raise InputError(f"no dataset {name!r} {where}: there is none; see ppv dataset build")
        raise InputError(f"no dataset {name!r} {where}; {nearest(name, known)}")

    def read(self, name: str, version: str) -> Manifest | None:
        """None if there is none. Raises DatasetDamaged if its manifest is broken."""
        try:
            data = self.store.get(self.key(name, version, MANIFEST))
        except ObjectNotFound:
            return None
        try:
            return Manifest.model_validate_json(data)
        except ValidationError as error:
            reason = " ".join(str(error).split())[:120]
            raise DatasetDamaged(
                f"dataset {name}@{version}: {MANIFEST} is broken: {reason}"
            ) from None

    def examples(self, manifest: Manifest, split: Split) -> Iterator[Example]:
        """Every picture of a split, as a stream; memory holds one shard at a time.

        Raises DatasetDamaged if a shard is missing, or is not what was frozen.
        """
        for shard in manifest.shards(split):
            for row in rows_of(self.fetch(manifest, shard)):
                yield Example(
                    id=row["id"],
                    image=row["image"]["bytes"],
                    prompt=row["prompt"],
                    base_prompt=row["base_prompt"],
                    category=row["category"],
                    provenance=row["provenance"],
                )

    def entries(self, manifest: Manifest) -> Iterator[Entry]:
        """Every picture by its hashes, both splits, in the order of ids; a stream."""
        return heapq.merge(
            *(self._entries(manifest, split) for split in SPLITS), key=lambda entry: entry.id
        )

    def _entries(self, manifest: Manifest, split: Split) -> Iterator[Entry]:
        for listed in manifest.lists(split):
            yield from entries_of(self.fetch(manifest, listed))

    def fetch(self, manifest: Manifest, file: File) -> bytes:
        """A file as it was frozen. Raises DatasetDamaged."""
        reason = f"dataset {manifest.reference} is damaged: {file.path} "
        advice = "; `ppv dataset verify` names all that is"
        try:
            data = self.store.get(self.key(manifest.name, manifest.version, file.path))
        except ObjectNotFound:
            raise DatasetDamaged(f"{reason}is missing from {self.store.address}{advice}") from None
        if (found := sha256(data)) != file.sha256:
            raise DatasetDamaged(
                f"{reason}is not what was frozen (SHA-256 {found[:12]}..., and "
                f"{file.sha256[:12]}... in the manifest){advice}"
            )
        return data

    def key(self, name: str, version: str, path: str) -> str:
        return f"datasets/{name}/{version}/{path}"


@dataclass(frozen=True)
class Flaw:
    """Something that is not as it was frozen."""

    file: str
    problem: str
    id: str | None = None  # of the picture, where it is one


def verify(
    datasets: Datasets, manifest: Manifest, saw: Callable[[File], object] = lambda file: None
) -> Iterator[Flaw]:
    """Every file against its hash, every picture against its own, decoded. Streams.

    saw: is told of each file when it is done.
    """
    entries: dict[str, File] = {f.path: f for split in SPLITS for f in manifest.lists(split)}
    for file in manifest.files:
        try:
            data = datasets.store.get(datasets.key(manifest.name, manifest.version, file.path))
        except ObjectNotFound:
            yield Flaw(file.path, "is missing")
        else:
            if (found := sha256(data)) != file.sha256:
                yield Flaw(file.path, f"is altered: SHA-256 {found}, frozen with {file.sha256}")
            if file.is_shard:
                listed = entries[list_of(file.path)]
                yield from _flaws_of_shard(datasets, manifest, file, data, listed)
        saw(file)


def _flaws_of_shard(
    datasets: Datasets, manifest: Manifest, shard: File, data: bytes, listed: File
) -> Iterator[Flaw]:
    from PIL import Image

    try:
        expected = entries_of(datasets.fetch(manifest, listed))
    except DatasetDamaged:  # said of the list itself
        expected = []
    by_id = {entry.id: entry for entry in expected}
    try:
        for row in rows_of(data):
            entry = by_id.pop(row["id"], None)
            image = row["image"]["bytes"]
            if entry and sha256(image) != entry.image_sha256:
                yield Flaw(shard.path, "the picture is not the one that was frozen", row["id"])
            elif expected and not entry:
                yield Flaw(shard.path, "the picture is not of this shard", row["id"])
            try:
                Image.open(io.BytesIO(image)).load()
            except Exception as error:  # whatever Pillow's decoders raise
                yield Flaw(shard.path, f"the picture cannot be decoded: {error}", row["id"])
    except Exception as error:  # whatever pyarrow makes of altered bytes
        yield Flaw(shard.path, f"cannot be read: {' '.join(str(error).split())[:200]}")
        return
    for id in by_id:
        yield Flaw(shard.path, "the picture is missing", id)


def copy_to(
    datasets: Datasets, manifest: Manifest, to: Path, saw: Callable[[File], object]
) -> None:
    """A version as a folder, whole or not at all; `load_dataset` reads it.

    It takes the place of what an export or a copy has left there. saw: is told of each file.
    Raises InputError if something else lies at `to`, and DatasetDamaged.
    """
    with replaced(to) as folder, (folder / SUMS).open("w", encoding="utf-8") as sums:
        for file in manifest.files:
            (folder / file.path).write_bytes(datasets.fetch(manifest, file))
            print(f"{file.sha256}  {file.path}", file=sums)
            saw(file)
        data = manifest.model_dump_json(indent=1).encode()
        (folder / MANIFEST).write_bytes(data)
        print(f"{sha256(data)}  {MANIFEST}", file=sums)
        (folder / MARK).write_text(json.dumps({"dataset": manifest.reference}), encoding="utf-8")


@dataclass(frozen=True)
class Change:
    """A picture that two versions do not have alike."""

    id: str
    before: Entry | None
    after: Entry | None

    @property
    def kind(self) -> Literal["added", "removed", "changed"]:
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"


def changes(before: Iterator[Entry], after: Iterator[Entry]) -> Iterator[Change]:
    """What differs between two streams of entries, each in the order of ids; a stream."""

    def said(entry: Entry) -> tuple[str, ...]:
        return entry.image_sha256, entry.record, entry.split

    tagged = heapq.merge(
        ((entry.id, 0, entry) for entry in before), ((entry.id, 1, entry) for entry in after)
    )
    for id, group in itertools.groupby(tagged, key=lambda each: each[0]):
        sides: dict[int, Entry] = {side: entry for _, side, entry in group}
        old, new = sides.get(0), sides.get(1)
        if old is None or new is None or said(old) != said(new):
            yield Change(id, old, new)


def check_dataset_name(name: str) -> str:
    """The name itself. Raises InputError if it cannot become a part of a key."""
    try:
        return _NAME.validate_python(name)
    except ValidationError:
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        raise InputError(
            f"dataset name {shown!r}: use 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or a digit"
        ) from None


def list_of(shard: str) -> str:
    """The path of a shard's list."""
    return shard.removesuffix(SHARD) + LIST


def rows_of(shard: bytes) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, a group of them at a time."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with ParquetFile(pyarrow.BufferReader(shard)) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()


def list_bytes(entries: Iterable[Entry]) -> bytes:
    lines = "".join(f"{entry.model_dump_json()}\n" for entry in entries)
    return gzip.compress(lines.encode(), mtime=0)


def entries_of(listed: bytes) -> list[Entry]:
    """Raises OSError, EOFError, zlib.error or ValueError if it is no list."""
    lines = gzip.decompress(listed).splitlines()
    return [Entry.model_validate_json(line) for line in lines]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
