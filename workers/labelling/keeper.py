"""Brings what a journal holds to the store, soon after each key and again until it is there."""

import threading
import time

from pipeline.errors import ServiceError
from storage.labels import LabelSets, label_lines, merged, parse_labels
from workers.labelling.journal import Journal

_PAUSE_S = 1.0  # keys within it share a put
_SHARE = 0.05  # of the time, at most, goes into puts: a long journal is put less often
_LONGEST_PAUSE_S = 60.0


class Keeper:
    """The one who writes a journal's object. Start it, tell it of changes, and stop it."""

    def __init__(self, journal: Journal, sets: LabelSets, set_name: str, annotator: str) -> None:
        self._journal, self._sets = journal, sets
        self._names = set_name, annotator
        self._changed, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="label-keeper")
        self.trouble = ""  # why the store lacks some of the journal; "": it does not

    def settle(self) -> None:
        """Journal and store hold the same afterwards: the lines of both, by their time.

        Raises InputError for a line in either that is no label, and StoreError.
        """
        here, there = self._journal.read_bytes(), self._sets.read_bytes(*self._names)
        if not here.startswith(there):
            if there.startswith(here):
                lines = there
            else:
                name = f"{self._sets.store.address}/{self._sets.key(*self._names)}"
                lines = label_lines(merged(parse_labels(there, name), self._journal.labels()))
            self._journal.replace(lines)
            here = lines
        if here != there:
            self._sets.write_bytes(*self._names, here)

    def start(self) -> None:
        self._thread.start()

    def changed(self) -> None:
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
