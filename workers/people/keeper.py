"""Brings what a journal holds to the store, soon after each key and again until it is there."""

import threading
import time
from typing import Generic, Self

from pipeline.errors import ServiceError
from storage.said import Line, Sayings, as_lines, merged, parse_lines
from workers.people.journal import Journal

_PAUSE_S = 1.0  # keys within it share a put
_SHARE = 0.05  # of the time, at most, goes into puts: a long journal is put less often
_LONGEST_PAUSE_S = 60.0


class Keeper(Generic[Line]):
    """The one who writes a journal's object; works as long as its block."""

    def __init__(
        self, journal: Journal[Line], sets: Sayings[Line], set_name: str, annotator: str
    ) -> None:
        self._journal, self._sets = journal, sets
        self._names = set_name, annotator
        self._changed, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="keeper")
        self.trouble = ""  # why the store lacks some of the journal; "": it does not

    def settle(self) -> None:
        """Journal and store hold the same afterwards: the lines of both, by their time.

        Raises InputError for a line in either that is none of their kind, and StoreError.
        """
        here, there = self._journal.read_bytes(), self._sets.read_bytes(*self._names)
        if not here.startswith(there):
            if there.startswith(here):
                lines = there
            else:
                name = f"{self._sets.store.address}/{self._sets.key(*self._names)}"
                theirs = parse_lines(there, name, self._sets.kind)
                lines = as_lines(merged(theirs, self._journal.lines()))
            self._journal.replace(lines)
            here = lines
        if here != there:
            self._sets.write_bytes(*self._names, here)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def append(self, said: list[Line]) -> None:
        """In the journal when it returns, and in the store soon after. Raises ServiceError."""
        self._journal.append(said)
        self._changed.set()

    def stop(self) -> None:
        """Put what is left; `trouble` says if that did not work. A second call does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._changed.set()
        self._thread.join()
        self._put()

    def _work(self) -> None:
        while not self._ended.is_set():
            self._changed.wait()
            self._ended.wait(_PAUSE_S)
            if self._ended.is_set():
                return  # the last put is stop's
            began = time.monotonic()
            if not self._put():
                self._changed.set()
            took = time.monotonic() - began
            self._ended.wait(min(took / _SHARE, _LONGEST_PAUSE_S))

    def _put(self) -> bool:
        self._changed.clear()
        try:
            self._sets.write_bytes(*self._names, self._journal.read_bytes())
        except ServiceError as error:
            self.trouble = str(error)
            return False
        self.trouble = ""
        return True
