"""A dataset to train on: a folder of pictures with prompts, held against its manifest, streamed.

What `ppv dataset` and `ppv export` write, and others of those forms: parquet files with the columns
"image" and "prompt", or pictures with a metadata.jsonl that gives each its "prompt". Where files
are named train-..., others, such as test-..., are not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.errors import InputError
from pipeline.training.card import Learned
from pipeline.training.instances import FORMATS, read_picture
from pipeline.types import digest

MANIFEST = "manifest.json"  # of a frozen dataset: {"files": [{"path": ..., "sha256": ...}, ...]}
SUMS = "SHA256SUMS"  # of an export
METADATA = "metadata.jsonl"
ROWS_AT_ONCE = 4
BUFFER_BYTES = 2**20
PROMPTS_KEPT = 4096  # different ones, of which some are drawn along the way


@dataclass(frozen=True)
class Captioned:
    """A picture, read when it is needed, and its prompt."""

    read: Callable[[], Image.Image]
    prompt: str


@dataclass(frozen=True)
class Dataset:
    """A dataset in its folder, checked. files: below it. prompts: the first different ones.

    sha256: of its manifest, or over all its files where it has none.
    """

    folder: Path
    name: str
    files: tuple[str, ...]
    sha256: str
    pictures: int
    prompts: tuple[str, ...]

    @property
    def learned(self) -> Learned:
        return Learned(name=self.name, sha256=self.sha256, pictures=self.pictures)

    def captioned(self) -> Iterator[Captioned]:
        """Every picture with its prompt, in the dataset's order; memory holds a few at a time."""
        for number, row in enumerate(_rows(self.name, self.folder, self.files), 1):
            yield Captioned(partial(_picture, self, number, row["image"]), row["prompt"])


def open_dataset(folder: Path, name: str = "") -> Dataset:
    """Checks all but the pixels: files and their hashes, columns, prompts.

    name: what people call it; by default the folder's. Raises InputError in one line.
    """
    name = name or folder.resolve().name
    if not folder.is_dir():
        raise InputError(f"no dataset {str(folder)!r}: give a folder, or NAME@VERSION of the store")
    files, sha256 = _checked(name, folder)
    pictures, prompts = 0, dict[str, None]()
    for row in _rows(name, folder, files, ("prompt",)):
        pictures += 1
        prompt = row["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"dataset {name}: picture {pictures:,} has no prompt, but {prompt!r}")
        if len(prompts) < PROMPTS_KEPT:
            prompts[prompt] = None
    if not pictures:
        raise InputError(f"dataset {name} is empty: give one that holds pictures")
    return Dataset(folder, name, tuple(files), sha256, pictures, tuple(prompts))


def _checked(name: str, folder: Path) -> tuple[list[str], str]:
    """The files to train on, found to be those that the manifest names, and the manifest's hash."""
    inside = [path for path in folder.rglob("*") if path.is_file()]
    there = _to_train(path.relative_to(folder).as_posix() for path in inside)
    manifest, named = _manifest(name, folder)
    wanted = _to_train(named) if manifest else there
    if not wanted:
        raise InputError(
            f"{str(folder)!r} is no dataset: it has neither .parquet files nor a {METADATA} beside "
            "pictures, such as `ppv export` writes"
        )
    altered = f"dataset {name}, in {str(folder)!r}, is altered since its {manifest}"
    for path in sorted({*there} ^ {*wanted}):
        what = "is missing" if path in wanted else "was added"
        raise InputError(f"{altered}: {path} {what}; get it again")
    hashes = {path: _sha256(folder / path) for path in wanted}
    for path, sha256 in hashes.items() if manifest else ():
        if sha256 != named[path]:
            raise InputError(f"{altered}: {path} has other content; get it again")
    return wanted, _sha256(folder / manifest) if manifest else digest(hashes)


def _to_train(paths: Iterable[str]) -> list[str]:
    """Those files of a dataset that hold what is trained on."""
    seen = sorted(path for path in paths if not any(p.startswith(".") for p in path.split("/")))
    shards = [path for path in seen if path.endswith(".parquet")]
    if shards:
        return [path for path in shards if Path(path).name.startswith("train")] or shards
    if METADATA not in seen:
        return []
    return [path for path in seen if path == METADATA or Path(path).suffix.lower() in FORMATS]


def _manifest(name: str, folder: Path) -> tuple[str, Mapping[str, str]]:
    """The file that names the others, and their hashes by path; "" if there is none."""
    try:
        if (folder / MANIFEST).is_file():
            files = json.loads((folder / MANIFEST).read_bytes())["files"]
            return MANIFEST, {str(file["path"]): str(file["sha256"]) for file in files}
        if (folder / SUMS).is_file():
            lines = (folder / SUMS).read_text("utf-8").splitlines()
            pairs = (line.split(maxsplit=1) for line in lines)
            return SUMS, {path: sha256 for sha256, path in pairs}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"dataset {name}: its list of files cannot be read: {reason}") from None
    return "", {}


def _rows(
    name: str, folder: Path, files: Iterable[str], columns: tuple[str, ...] = ("image", "prompt")
) -> Iterator[dict[str, Any]]:
    """Every row; an image is its path, or a mapping with "bytes"."""
    for path in files:
        try:
            if path.endswith(".parquet"):
                yield from _parquet(folder / path, columns)
            elif path == METADATA:
                yield from _listed(folder / path)
        except _NoColumn as missing:
            raise InputError(f"dataset {name}: {path} has no column {missing}") from None
        # ValueError: of pyarrow and of json; TypeError: of a line that is no object
        except (OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"dataset {name}: {path} cannot be read: {reason}") from None


class _NoColumn(Exception):
    """Which one, and which there are."""


def _parquet(file: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    # As it is by default, pyarrow 26 keeps a whole file in memory while it is read.
    with ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES) as shard:
        names = shard.schema_arrow.names
        for column in ("image", "prompt"):
            if column not in names:
                raise _NoColumn(f"{column!r}: there are {', '.join(names)}")
        for some in shard.iter_batches(ROWS_AT_ONCE, columns=list(columns), use_threads=False):
            yield from some.to_pylist()


def _listed(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            said = json.loads(line)
            for column in ("file_name", "prompt"):
                if column not in said:
                    raise _NoColumn(f"{column!r}: there are {', '.join(said)}")
            yield {"image": said["file_name"], "prompt": said["prompt"]}


def _picture(dataset: Dataset, number: int, image: Any) -> Image.Image:
    """Raises InputError, which names the picture, if it cannot be read."""
    content = image.get("bytes") if isinstance(image, dict) else image
    path = image.get("path") if isinstance(image, dict) else image
    path = path if isinstance(path, str) else ""
    file = dataset.folder / path if path else Path(f"number {number}")
    try:
        return read_picture(file, content if isinstance(content, bytes) else None)
    except InputError as problem:
        raise InputError(f"dataset {dataset.name}, picture {number:,}: {problem}") from None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
