"""Labels as commands take them: JSONL files, and sets in the store with their pictures."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.training.verifier_labels import Source
    from storage.objects import ObjectStore


@contextmanager
def label_sources(names: list[str], state_dir: Path) -> "Iterator[list[Source]]":
    """The labels by their names: files, and sets whose pictures are brought to state_dir.

    Raises InputError for a name that is neither, and for a file that is broken.
    """
    from pipeline.training.verifier_labels import read_file
    from workers.cli.session import open_for_reading

    files = [name for name in names if name.endswith(".jsonl") or Path(name).exists()]
    if len(files) == len(names):
        yield [read_file(Path(name)) for name in names]
        return
    with open_for_reading() as store:
        yield [
            read_file(Path(name)) if name in files else _from_store(store, name, state_dir)
            for name in names
        ]


def _from_store(store: "ObjectStore", name: str, state_dir: Path) -> "Source":
    """A set of the store. A picture that is gone is left for others to name."""
    from concurrent.futures import ThreadPoolExecutor

    from pipeline.errors import InputError
    from pipeline.labels import Label
    from pipeline.training.verifier_labels import Source
    from pipeline.types import digest
    from storage.labels import LabelSets
    from storage.objects import ObjectNotFound

    said = list(LabelSets(store).read(name))
    if not said:
        raise InputError(f"no labels {name!r}: neither a file nor a set of labels in the store")
    folder = state_dir / "label-pictures" / digest(store.address)[:12]

    def here(label: Label) -> Path:
        return folder / digest(label.image)[:4] / Path(label.image).name

    def bring(label: Label) -> None:
        file = here(label)
        if file.exists():
            return
        try:
            data = store.get(label.image)
        except ObjectNotFound:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")  # each process brings its own
        partial.write_bytes(data)
        partial.replace(file)

    with ThreadPoolExecutor(max_workers=8) as threads:
        list(threads.map(bring, {label.image: label for label in said}.values()))
    return Source(name, said, here)
