"""What was said, on this machine's disk: it is there before the key that said it is answered."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Generic, Self

from pipeline.errors import InputError, ServiceError
from storage.said import Line, as_lines, parse_line


class Journal(Generic[Line]):
    """A file that only grows, one JSON object a line; one process at a time.

    A store has no append, and writing a whole object at each key would take too long.
    """

    def __init__(self, path: Path, kind: type[Line]) -> None:
        """Makes the file if it is absent. Raises InputError if another process has it."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path, self._kind = path, kind
        self._lock = path.with_name(f".{path.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(
                f"{path} is in use: end the other command of this name and annotator, or give "
                "another --annotator"
            ) from None
        self.torn = _cut_torn_line(path)
        self._open()

    def _open(self) -> None:
        self._file = self.path.open("ab", buffering=0)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # a new name may else be lost with the power
        finally:
            os.close(folder)

    def append(self, said: Iterable[Line]) -> None:
        """On the disk when it returns; all or none. Raises ServiceError if they cannot be."""
        lines = as_lines(said)
        before = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(lines) != len(lines):
                raise OSError(None, "no room for the whole line")
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(before)
            raise ServiceError(f"{self.path} cannot be written: {error.strerror}") from error

    def lines(self) -> Iterator[Line]:
        """Oldest first, as a stream. Raises InputError for one that is none of this kind."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield parse_line(line, f"{self.path}, line {number}", self._kind)

    def read_bytes(self) -> bytes:
        """Whole lines, even while one is being written."""
        data = self.path.read_bytes()
        return data[: data.rfind(b"\n") + 1]

    def replace(self, lines: bytes) -> None:
        """Put these lines in the place of all that was there."""
        part = self.path.with_name(f".{self.path.name}.partial")
        with part.open("wb") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        part.replace(self.path)
        self._open()

    def close(self) -> None:
        self._file.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _cut_torn_line(path: Path) -> bool:
    """Drops a last line without an end: the process died before it answered that key."""
    if not path.exists():
        return False
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - 64 * 1024)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        file.truncate(end)
    return end < size
