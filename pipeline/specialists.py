"""What a specialist is, wherever it lies: its weights, and model.json that says what they are for.

<folder>/model.json                            name, category, token, base, hashes
<folder>/pytorch_lora_weights.safetensors      a low-rank adapter, or
<folder>/pipeline/...                          a whole pipeline
<folder>/card.json, README.md, training.html   where it was trained here
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from pipeline.errors import InputError, ModelError
from pipeline.models import WEIGHTS
from pipeline.types import BASE, Adapter, Frozen, ModelName, ModelRef, version_of

MODEL = "model.json"
SHIPPED = WEIGHTS / "specialists"
"""Those of the miniature, a folder each."""

_MODEL_NAME = TypeAdapter(ModelName)
_WORKING = "checkpoints"  # of a training that may go on; no part of what it made


class Specialist(Frozen):
    """A model of the registry. files: the SHA-256 of each, by its path below the folder."""

    name: ModelName
    weights: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    method: Literal["lora", "full"]
    category: str = ""  # "": it is for none in particular
    token: str = ""
    base: ModelRef | None = None  # None: made elsewhere, on a base that nobody named
    files: Annotated[dict[str, str], Field(min_length=1)]
    size_bytes: int
    created_at: str  # ISO 8601, UTC

    @property
    def version(self) -> str:
        return version_of(self.weights)

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    def adapter(self, category: str) -> Adapter:
        """As it draws that category."""
        return Adapter(name=self.name, weights=self.weights, category=category, token=self.token)

    def suits(self, base: ModelRef) -> bool:
        """False if it is known to be another base's."""
        return self.base is None or self.base.weights == base.weights


def check_model_name(name: str) -> str:
    """The name itself. Raises InputError if it cannot become a part of a key."""
    try:
        if name != BASE:
            return _MODEL_NAME.validate_python(name)
    except ValidationError:
        pass
    shown = name if len(name) <= 80 else f"{name[:77]}..."
    raise InputError(
        f"model name {shown!r}: use 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning with a letter "
        f"or a digit; {BASE!r} is taken"
    )


def describe(
    path: Path,
    name: str,
    created_at: str,
    category: str = "",
    token: str = "",
    base: ModelRef | None = None,
    base_folder: Path | None = None,
) -> Specialist:
    """What lies in a folder, or in one file of weights, as a specialist.

    Raises ModelError for weights that are no adapter, are unsafe, or are another base's.
    """
    from pipeline.proposer.adapters import check_adapter

    found = check_adapter(path, base_folder)
    return Specialist(
        name=check_model_name(name),
        weights=found.weights,
        method=found.method,
        category=category,
        token=token,
        base=base,
        files={inner: _sha256(file) for inner, file in files_of(path)},
        size_bytes=found.bytes,
        created_at=created_at,
    )


def files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """What is kept of a folder, or of one file, by the path below the specialist's own folder."""
    if path.is_file():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        inner = file.relative_to(path)
        working = inner.parts[0] == _WORKING or any(part.startswith(".") for part in inner.parts)
        if file.is_file() and not working and inner.name != MODEL:
            yield inner.as_posix(), file


def shipped() -> Iterator[tuple[Specialist, Path]]:
    """The miniature's specialists, with their folders."""
    for file in sorted(SHIPPED.glob(f"*/{MODEL}")):
        yield read(file), file.parent


def read(file: Path) -> Specialist:
    """Raises ModelError for a model.json that is broken."""
    try:
        return Specialist.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{str(file)!r} says nothing of a specialist: {reason}") from None


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
