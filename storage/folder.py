"""Objects as files of a folder, each as whole as on S3."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from pipeline.errors import InputError
from storage.objects import (
    BadKey,
    ObjectNotFound,
    StoreDenied,
    StoreError,
    StoreFull,
    check_key,
    check_prefix,
    is_key,
)

# EFBIG: the file system, or a limit on this process, has no room for a file of this size.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class FolderStore:
    """Each object a file: written beside its place under a name that no key can have, then moved.

    The bytes are on the disk before the move (fsync): without that, a power cut may leave the new
    name on an empty file, and half-written must never read as whole. It costs about a millisecond
    on an SSD. The folder's own entry is not forced out: if it is lost, the object is absent, and
    its work is done again.

    Symbolic links inside the folder are followed; they are its owner's.
    """

    def __init__(self, folder: Path) -> None:
        """Makes the folder if it is absent. Raises InputError if it is something else."""
        self._root = folder.resolve()
        self.address = self._root.as_uri()
        with self._explained():
            try:
                self._root.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise InputError(f"store {self.address}: this is a file, not a folder") from None

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        partial = path.with_name(f".partial-{uuid4().hex}")
        with self._explained():
            try:
                try:
                    with _new(partial) as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                    partial.replace(path)
                except BaseException:
                    with suppress(OSError):
                        partial.unlink()
                    raise
            except (FileExistsError, IsADirectoryError, NotADirectoryError):
                raise BadKey(f"key {key!r}: a key cannot also be a folder of keys") from None

    def get(self, key: str) -> bytes:
        with self._explained():
            try:
                return self._path(key).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise ObjectNotFound(f"no object {key!r} in {self.address}") from None

    def exists(self, key: str) -> bool:
        with self._explained():
            return self._path(key).is_file()

    def list(self, prefix: str) -> Iterator[str]:
        folder, _, begin = check_prefix(prefix).rpartition("/")
        with self._explained():
            yield from self._keys(folder, begin)

    def folders(self, key: str) -> Iterator[str]:
        path = self._path(key)
        with self._explained(), suppress(FileNotFoundError, NotADirectoryError):
            for entry in path.iterdir():
                if entry.is_dir() and is_key(entry.name):
                    yield entry.name

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._explained():
            with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                path.unlink()
            # A folder left empty would stand in the way of a key of its name.
            for folder in path.parents:
                if folder == self._root:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _keys(self, folder: str, begin: str = "") -> Iterator[str]:
        """begin: with what the names right in the folder begin."""
        try:
            entries = os.scandir(self._root / folder)
        except (FileNotFoundError, NotADirectoryError):  # never there, or deleted meanwhile
            return
        with entries:
            for entry in entries:
                if not entry.name.startswith(begin):
                    continue
                key = f"{folder}/{entry.name}" if folder else entry.name
                if not is_key(key):
                    continue  # half-written, or not ours
                if entry.is_dir():
                    yield from self._keys(key)
                else:
                    yield key

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the operating system says into the store's errors."""
        try:
            yield
        except PermissionError as error:
            raise StoreDenied(f"store {self.address}: {error}") from error
        except OSError as error:
            kind = StoreFull if error.errno in _NO_ROOM else StoreError
            raise kind(f"store {self.address}: {error.strerror}") from error


def _new(path: Path) -> BinaryIO:
    """A new file, and its folder where absent, even while a delete removes empty folders."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return path.open("xb")
        except FileNotFoundError:
            continue
