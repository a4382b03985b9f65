"""What people said, in the store: labels of pictures, and choices between two.

    <folder>/<set>.<annotator>.jsonl   what one annotator said, oldest first; the last line counts

Each annotator of a set has an object of their own, so that two machines never overwrite one
another's. An annotator's name has no dot, so the last one in a key parts the two names.
"""

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from pipeline.choices import Choice
from pipeline.errors import InputError
from pipeline.labels import Annotator, Label
from storage.objects import ObjectNotFound, ObjectStore
from storage.runs import check_run_name

Line = TypeVar("Line", bound=Label | Choice)

_ANNOTATOR = TypeAdapter(Annotator)
_END = ".jsonl"


def check_annotator(name: str) -> str:
    """The name itself. Raises InputError if it cannot become a part of a key."""
    try:
        return _ANNOTATOR.validate_python(name)
    except ValidationError:
        raise InputError(
            f"annotator {_shown(name)}: use 1 to 32 of a-z, 0-9, '_' and '-', beginning with a "
            "letter or a digit"
        ) from None


class Sayings(Generic[Line]):
    """All sets of one kind in a store; a set has the rules of a run's name."""

    def __init__(self, store: ObjectStore, folder: str, kind: type[Line]) -> None:
        self.store, self.kind, self._folder = store, kind, folder

    def key(self, set_name: str, annotator: str) -> str:
        return f"{self._folder}/{check_run_name(set_name)}.{check_annotator(annotator)}{_END}"

    def _all(self) -> Iterator[tuple[str, str]]:
        """Set and annotator of every object."""
        for key in self.store.list(f"{self._folder}/"):
            if key.endswith(_END):
                set_name, dot, annotator = key.split("/")[-1].removesuffix(_END).rpartition(".")
                if dot:
                    yield set_name, annotator

    def sets(self) -> list[str]:
        return sorted({set_name for set_name, _ in self._all()})

    def annotators(self, set_name: str) -> list[str]:
        return sorted(annotator for of, annotator in self._all() if of == set_name)

    def read_bytes(self, set_name: str, annotator: str) -> bytes:
        """One annotator's lines as they lie there; empty if there are none."""
        try:
            return self.store.get(self.key(set_name, annotator))
        except ObjectNotFound:
            return b""

    def write_bytes(self, set_name: str, annotator: str, lines: bytes) -> None:
        self.store.put(self.key(set_name, annotator), lines)

    def of(self, set_name: str, annotator: str) -> Iterator[Line]:
        """What one annotator said, oldest first. Raises InputError for a line that is none."""
        name = f"{self.store.address}/{self.key(set_name, annotator)}"
        return parse_lines(self.read_bytes(set_name, annotator), name, self.kind)

    def read(self, set_name: str) -> Iterator[Line]:
        """What all annotators of a set said, one after the other."""
        for annotator in self.annotators(set_name):
            yield from self.of(set_name, annotator)


def parse_lines(lines: bytes, name: str, kind: type[Line]) -> Iterator[Line]:
    """Raises InputError, with the name and the line's number, for what is no line of this kind."""
    for number, line in enumerate(lines.splitlines(), 1):
        yield parse_line(line, f"{name}, line {number}", kind)


def parse_line(line: bytes, where: str, kind: type[Line]) -> Line:
    """Raises InputError, in one line, if this is none."""
    try:
        return cast(Line, kind.model_validate_json(line))
    except ValidationError as error:
        errors = error.errors(include_url=False)
    what = kind.__name__.lower()
    # A misspelt field is missing too: the misspelling says more.
    unknown = (each for each in errors if each["type"] == "extra_forbidden")
    first = next(unknown, errors[0])
    field = ".".join(map(str, first["loc"]))
    known = list(kind.model_fields)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
        raise InputError(f"{where}: unknown field {field!r}: {hint}")
    if first["type"] == "missing":
        raise InputError(
            f"{where}: the field {field!r} is missing; a {what} has {', '.join(known)}"
        )
    reason = " ".join(first["msg"].split())
    if not field:
        raise InputError(f"{where} is no {what}: {reason}; write one JSON object a line")
    raise InputError(f"{where}: field {field!r} is {_shown(first['input'])}: {reason}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_lines(said: Iterable[Line]) -> bytes:
    return "".join(f"{each.model_dump_json()}\n" for each in said).encode()


def merged(one: Iterable[Line], other: Iterable[Line]) -> list[Line]:
    """The lines of both, each once, by their time; lines of one time keep their order."""
    return sorted(dict.fromkeys([*one, *other]), key=lambda line: line.at)
