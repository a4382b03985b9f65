"""What everybody said of one set: in the store, and in this machine's journals."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic

from storage.said import Line, Sayings, merged, parse_lines
from workers.people.journal import Journal
from workers.people.keeper import Keeper


class Shelf(Generic[Line]):
    """One set of a store, and the folder of this machine's journals."""

    def __init__(self, sayings: Sayings[Line], set_name: str, journals: Path) -> None:
        self._sayings, self.set_name, self._journals = sayings, set_name, journals

    @contextmanager
    def open(self, annotator: str) -> Iterator[tuple[Journal[Line], Keeper[Line]]]:
        """One annotator's journal, which holds what the store does, and its keeper, not started.

        Raises InputError if another process has it.
        """
        with Journal(self._path(annotator), self._sayings.kind) as journal:
            keeper = Keeper(journal, self._sayings, self.set_name, annotator)
            keeper.settle()
            yield journal, keeper

    def annotators(self) -> list[str]:
        here = (path.name.removesuffix(".jsonl") for path in self._journals.glob("*.jsonl"))
        return sorted(
            set(self._sayings.annotators(self.set_name))
            | {
                annotator
                for set_name, _, annotator in (name.rpartition(".") for name in here)
                if set_name == self.set_name
            }
        )

    def lines_of(self, annotator: str) -> list[Line]:
        """In the store, and in this machine's journal, of which the store may lack the end."""
        there = self._sayings.of(self.set_name, annotator)
        path = self._path(annotator)
        if not path.exists():
            return list(there)
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        return merged(there, parse_lines(whole, str(path), self._sayings.kind))

    def _path(self, annotator: str) -> Path:
        return self._journals / f"{self.set_name}.{annotator}.jsonl"
