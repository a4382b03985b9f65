"""Datasets of the store on this machine, for a training that reads them as files."""

import secrets
from pathlib import Path

from storage.datasets import MANIFEST, Datasets
from storage.objects import ObjectStore


def bring(reference: str, store: ObjectStore, cache: Path) -> tuple[Path, str]:
    """The folder with what a dataset has to train on, fetched if it is not there; NAME@VERSION.

    Raises InputError if there is no such dataset, or if an object of it is missing or altered.
    """
    datasets = Datasets(store)
    manifest = datasets.find(reference)
    folder = cache / manifest.name / manifest.version
    folder.mkdir(parents=True, exist_ok=True)
    for file in manifest.shards("train"):
        if not (folder / file.path).exists():
            _write(folder / file.path, datasets.fetch(manifest, file))
    # written last; what is there is held against it whenever it is opened
    _write(folder / MANIFEST, store.get(datasets.key(manifest.name, manifest.version, MANIFEST)))
    return folder, manifest.reference


def _write(to: Path, data: bytes) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}-{secrets.token_hex(4)}")
    partial.write_bytes(data)
    partial.replace(to)
