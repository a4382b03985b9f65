"""Rows of tensors in a file: appended once, then read as they are asked for.

However many rows there are, memory holds only those of one batch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


class Table:
    """Tensors of one shape and dtype, end to end in NAME.bin; NAME.json says which."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file, self._about = folder / f"{name}.bin", folder / f"{name}.json"
        self._kind: tuple[tuple[int, ...], torch.dtype, int] | None = None

    def __len__(self) -> int:
        """Whole rows; one that was being written when the power went is none."""
        if not self._file.exists():
            return 0
        return self._file.stat().st_size // self._row()[2]

    def append(self, rows: Tensor) -> None:
        """rows: (n, ...), all of the shape and dtype of the first that came."""
        if not self._about.exists():
            about = {"shape": rows.shape[1:], "dtype": str(rows.dtype).removeprefix("torch.")}
            partial = self._about.with_suffix(".partial")
            partial.write_text(json.dumps(about))
            partial.replace(self._about)
        shape, dtype, _ = self._row()
        assert (tuple(rows.shape[1:]), rows.dtype) == (shape, dtype), "rows of another kind"
        with self._file.open("ab") as file:
            file.write(rows.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())

    def cut(self, count: int) -> None:
        """Forgets all rows but the first `count`."""
        if self._file.exists():
            os.truncate(self._file, count * self._row()[2])

    def read(self, rows: Sequence[int]) -> Tensor:
        """(len(rows), ...) in the order of `rows`."""
        shape, dtype, size = self._row()
        content = bytearray(len(rows) * size)
        view = memoryview(content)
        with self._file.open("rb") as file:
            for place, row in enumerate(rows):
                file.seek(row * size)
                file.readinto(view[place * size : (place + 1) * size])
        return torch.frombuffer(content, dtype=dtype).reshape(len(rows), *shape)

    def _row(self) -> tuple[tuple[int, ...], torch.dtype, int]:
        """Shape, dtype and bytes of one."""
        if self._kind is None:
            about = json.loads(self._about.read_text())
            dtype: torch.dtype = getattr(torch, about["dtype"])
            shape = tuple(about["shape"])
            self._kind = shape, dtype, math.prod(shape) * dtype.itemsize
        return self._kind
