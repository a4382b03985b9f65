"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(to: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `to` once the block has ended well."""
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(to)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
