"""Accepted records as a dataset: Hugging Face parquet, WebDataset shards, or a folder of images.

Every form is a stream, so memory does not grow with the number of records, and appears as a whole
or not at all. Beside the data lie README.md (the card), SHA256SUMS, and a mark by which a later
export knows that it may replace the folder.
"""

import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.errors import InputError, ItemError
from pipeline.types import Frozen, Record
from storage.cards import CardFacts, ExportFormat, render_card
from storage.objects import ObjectNotFound

MARK = ".ppv-export.json"  # readers of datasets pass over names that begin with a dot
SUMS = "SHA256SUMS"
CARD = "README.md"

SHARD_BYTES = 256 * 2**20
_ROW_GROUP = 100  # rows that the Hugging Face viewer takes at once
_ROW_GROUP_BYTES = 16 * 2**20  # and how much of them is kept in memory


class ImageDamaged(ItemError):
    """A picture in the store is gone, or is not the one that was judged."""


class ExportSummary(Frozen):
    """What an export wrote, and where."""

    path: Path
    format: ExportFormat
    images: int
    files: int  # card, sums and mark not counted
    bytes: int  # of these files


def export(
    records: Iterable[Record],
    image_of: Callable[[Record], bytes],
    to: Path,
    format: ExportFormat,
    facts: CardFacts,
    shard_bytes: int = SHARD_BYTES,
) -> ExportSummary:
    """Writes these records, each given once, and their pictures as a dataset in the folder `to`.

    No records make an empty dataset, and the card says so: "hf" then has its columns and no rows,
    which `load_dataset` opens with streaming=True only; the others hold nothing to load.

    image_of: a record's picture as it lies in the store, PNG.
    shard_bytes: about how large a file of "hf" and "webdataset" grows.
    Raises InputError if something lies at `to` that no export made, and ImageDamaged if a picture
    is gone or does not fit its record's hash; what was there before then stays.
    """
    pictures = _Pictures(records, image_of)
    write = {"hf": _write_hf, "webdataset": _write_webdataset, "imagefolder": _write_imagefolder}
    files = total = 0
    with replaced(to) as folder, (folder / SUMS).open("w", encoding="utf-8") as sums:
        for path in write[format](pictures, folder, shard_bytes):
            print(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}", file=sums)
            files += 1
            total += path.stat().st_size
        card = folder / CARD
        card.write_text(render_card(facts, format, pictures.count), encoding="utf-8")
        print(f"{_sha256(card)}  {CARD}", file=sums)
        mark = {"format": format, "images": pictures.count, "facts": facts.model_dump(mode="json")}
        (folder / MARK).write_text(json.dumps(mark, indent=1), encoding="utf-8")
    return ExportSummary(path=to, format=format, images=pictures.count, files=files, bytes=total)


@dataclass
class _Pictures:
    """The records with their pictures, each held against its hash, counted as they pass."""

    records: Iterable[Record]
    image_of: Callable[[Record], bytes]
    count: int = 0

    def __iter__(self) -> Iterator[tuple[Record, bytes]]:
        for record in self.records:
            image = checked_picture(record, self.image_of)
            self.count += 1
            yield record, image


class Pictured(Protocol):
    """Whatever says which picture is its own: a record, or less."""

    @property
    def id(self) -> str: ...
    @property
    def run(self) -> str: ...
    @property
    def image_sha256(self) -> str: ...


P = TypeVar("P", bound=Pictured)


def checked_picture(which: P, image_of: Callable[[P], bytes]) -> bytes:
    """A proposal's picture as it was judged. Raises ImageDamaged."""
    what = f"proposal {which.id} of run {which.run!r}"
    try:
        image = image_of(which)
    except ObjectNotFound as error:
        raise ImageDamaged(f"{what}: its picture is gone ({error})") from error
    found = hashlib.sha256(image).hexdigest()
    if found != which.image_sha256:
        raise ImageDamaged(
            f"{what}: its picture is not the one that was judged "
            f"(SHA-256 {found}, and {which.image_sha256} in its record)"
        )
    return image


def _columns(record: Record) -> dict[str, Any]:
    """What "hf" and "imagefolder" say of a picture, by the names that the card explains."""
    proposal, verdict = record.proposal, record.verdict
    return {
        "id": record.id,
        "prompt": proposal.prompt.text,
        "base_prompt": proposal.prompt.base,
        "category": proposal.prompt.category,
        "fidelity": verdict.fidelity,
        "alignment": verdict.alignment,
        "seed": proposal.seed,
        "proposer": proposal.proposer.title,
        "proposer_weights": proposal.proposer.hashes,
        "verifier": record.verifier.name,
        "provenance": record.model_dump_json(),
    }


def _write_hf(pictures: _Pictures, folder: Path, shard_bytes: int) -> Iterator[Path]:
    """Parquet shards whose schema says which column is an image. Gives each when it is done."""
    groups = row_groups(pictures)
    group = next(groups, None)
    for shard in itertools.count():
        path = folder / f"train-{shard:05}.parquet"
        group = write_shard(path, group, groups, shard_bytes)
        yield path
        if group is None:
            return


RowGroup = list[dict[str, Any]]


def write_shard(
    path: Path, group: RowGroup | None, groups: Iterator[RowGroup], shard_bytes: int
) -> RowGroup | None:
    """A parquet file of this group of rows and those after it, until it is about as large.

    Returns the next group, which begins the next shard; None if there is none.
    """
    import pyarrow
    from datasets import Features, Image, Value
    from pyarrow.parquet import ParquetWriter

    texts = ("id", "prompt", "base_prompt", "category")
    origin = ("proposer", "proposer_weights", "verifier", "provenance")
    schema = Features(
        {
            "image": Image(),
            **{name: Value("string") for name in texts},
            **{name: Value("float64") for name in ("fidelity", "alignment")},
            "seed": Value("int64"),
            **{name: Value("string") for name in origin},
        }
    ).arrow_schema
    with ParquetWriter(path, schema) as writer:  # without any rows still a file, with columns
        while group is not None and path.stat().st_size < shard_bytes:
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
            group = next(groups, None)
    return group


def row_groups(pictures: Iterable[tuple[Record, bytes]]) -> Iterator[RowGroup]:
    """The rows that are written at once."""
    group: RowGroup = []
    size = 0
    for record, image in pictures:
        picture = {"bytes": image, "path": f"{record.id}.png"}
        group.append({"image": picture, **_columns(record)})
        size += len(image)
        if len(group) == _ROW_GROUP or size >= _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_webdataset(pictures: _Pictures, folder: Path, shard_bytes: int) -> Iterator[Path]:
    """Tar shards: for each proposal .png, .txt and .json. Gives each file when it is done."""
    from webdataset import ShardWriter

    done: list[Path] = []
    pattern = f"{str(folder).replace('%', '%%')}/train-%06d.tar"
    with ShardWriter(
        pattern,
        maxsize=shard_bytes,
        post=lambda name: done.append(Path(name)),
        verbose=0,
        mtime=0,  # the same records make the same bytes
    ) as writer:
        for record, image in pictures:
            writer.write(
                {
                    "__key__": record.id,
                    "png": image,
                    "txt": record.proposal.prompt.text,
                    "json": record.model_dump_json().encode(),
                }
            )
            while done:
                yield done.pop(0)
    yield from done


def _write_imagefolder(pictures: _Pictures, folder: Path, shard_bytes: int) -> Iterator[Path]:
    """images/<id>.png and metadata.jsonl. Gives each file when it is done.

    Not a folder for each category: readers take a folder named "test", or alike, for a split.
    """
    (folder / "images").mkdir()
    metadata = folder / "metadata.jsonl"
    with metadata.open("w", encoding="utf-8") as lines:
        for record, image in pictures:
            path = folder / "images" / f"{record.id}.png"
            path.write_bytes(image)
            row = {"file_name": f"images/{path.name}", **_columns(record)}
            print(json.dumps(row, ensure_ascii=False), file=lines)
            yield path
    yield metadata


@contextmanager
def replaced(to: Path) -> Iterator[Path]:
    """An empty folder beside `to` which takes its place at the end, or goes if anything fails."""
    to = to.resolve()
    _check_target(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    partial, former = (to.with_name(f".{to.name}.{part}") for part in ("partial", "former"))
    with _locked(partial):
        try:
            _empty(partial)  # of what a killed export left
            yield partial
            _check_target(to)
            if to.exists():
                shutil.rmtree(former, ignore_errors=True)
                to.rename(former)
            try:
                partial.rename(to)
            except OSError:
                if former.exists():
                    former.rename(to)
                raise
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(former, ignore_errors=True)


def _check_target(to: Path) -> None:
    """Raises InputError unless `to` is absent, empty, or what an export wrote and nothing more."""
    refused = f"cannot export to {to}: "
    if not to.exists():
        return
    if not to.is_dir():
        raise InputError(f"{refused}it is a file; name a folder")
    if not any(to.iterdir()):
        return
    if not (to / MARK).is_file() or not (to / SUMS).is_file():
        raise InputError(f"{refused}it holds files that no export made; name a new or empty folder")
    with (to / SUMS).open(encoding="utf-8") as sums:
        expected = sum(1 for _ in sums) + 1  # SHA256SUMS does not list itself
    found = sum(not name.startswith(".") for _, _, names in os.walk(to) for name in names)
    if found > expected:
        raise InputError(f"{refused}files were added to the export in it; move them, or it, away")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """This folder, made if absent, to ourselves. Raises InputError if another process has it."""
    folder.mkdir(exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # An export that ended just now may have moved the folder that we opened.
            if folder.exists() and os.path.samestat(os.fstat(held), folder.stat()):
                yield
                return
        raise InputError(f"another export is writing to {folder}; wait for it")
    finally:
        os.close(held)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
