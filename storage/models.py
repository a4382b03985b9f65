"""The registry of models: the only place that spells their keys.

    models/<name>/<version>/model.json     what it is; written last, so that it stands for a whole
    models/<name>/<version>/<file>         its weights, card, page and sample pictures

The version is the beginning of the weights' hash: the same weights again are the same version.
"""

import hashlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from pipeline.errors import ModelError, ModelNotHere
from pipeline.specialists import MODEL, Specialist, files_of
from pipeline.training.card import CARD
from pipeline.types import Adapter
from storage.objects import ObjectNotFound, ObjectStore

_NEEDED = {".safetensors", ".json", ".txt", ".model"}  # to draw with it, and to know its hash


class Models:
    """Specialists by name and version."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def add(self, specialist: Specialist, path: Path) -> None:
        """Keeps a folder, or one file of weights, that `specialists.describe` looked into.

        A version that is there stays as it is.
        """
        if self.read(specialist.name, specialist.version):
            return
        for inner, file in files_of(path):
            self._store.put(self._key(specialist, inner), file.read_bytes())
        data = specialist.model_dump_json(indent=1).encode()
        self._store.put(self._key(specialist, MODEL), data)

    def names(self) -> Iterator[str]:
        yield from sorted(self._store.folders("models"))

    def versions(self, name: str) -> list[Specialist]:
        """All that are whole, the newest first."""
        found = (self.read(name, version) for version in self._store.folders(f"models/{name}"))
        there = [each for each in found if each is not None]
        return sorted(there, key=lambda each: (each.created_at, each.version), reverse=True)

    def read(self, name: str, version: str) -> Specialist | None:
        """None if there is none. Raises ModelError if what lies there is broken."""
        try:
            data = self._store.get(f"models/{name}/{version}/{MODEL}")
        except ObjectNotFound:
            return None
        try:
            return Specialist.model_validate_json(data)
        except ValidationError as error:
            reason = " ".join(str(error).split())[:120]
            raise ModelError(f"model {name}@{version} in the store is broken: {reason}") from None

    def fetch(self, adapter: Adapter, to: Path) -> None:
        """What drawing with it takes, into the folder `to`, whole or not at all.

        Raises ModelNotHere if this store does not have it, or other bytes.
        """
        specialist = self.read(adapter.name, adapter.version)
        if specialist is None or specialist.weights != adapter.weights:
            raise ModelNotHere(
                f"no model {adapter.name}@{adapter.version} in {self._store.address}: add it "
                "again, or start a run with another"
            )
        from pipeline.proposer.lora_files import weights_of

        partial = to.with_name(f".{to.name}-{secrets.token_hex(4)}")
        for inner, sha256 in specialist.files.items():
            if Path(inner).suffix not in _NEEDED:
                continue
            data = self._store.get(self._key(specialist, inner))
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ModelNotHere(
                    f"model {specialist.reference}: {inner} is not the file that was kept: add it "
                    "again"
                )
            file = partial / inner
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        # model.json lies in the store too: what was frozen with a run is the hash of the weights.
        if weights_of(partial) != adapter.weights:
            shutil.rmtree(partial)
            raise ModelError(
                f"model {specialist.reference}: its weights are not those of its name: add it again"
            )
        try:
            partial.replace(to)
        except OSError:  # another worker was quicker
            shutil.rmtree(partial)
            if not to.is_dir():
                raise

    def card(self, adapter: Adapter) -> bytes | None:
        """What its training wrote of it; None if it was made elsewhere."""
        try:
            return self._store.get(f"models/{adapter.name}/{adapter.version}/{CARD}")
        except ObjectNotFound:
            return None

    def _key(self, specialist: Specialist, inner: str) -> str:
        return f"models/{specialist.name}/{specialist.version}/{inner}"
