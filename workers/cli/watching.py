"""How one watches a training: a bar on a terminal, plain lines in a pipe."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.training.loop import Point, Watch

_PLAIN_EVERY_S = 5.0


@contextmanager
def watching(name: str, unit: str = "images") -> "Iterator[Watch]":
    """name: what is trained. unit: what its speed is counted in."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines(name, unit)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    note = TextColumn("{task.fields[note]}")
    columns = TextColumn("{task.description}"), BarColumn(bar_width=32), MofNCompleteColumn(), note
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
        yield _Bar(name, unit, bars)


class _Lines:
    def __init__(self, name: str, unit: str) -> None:
        self._name, self._unit = name, unit
        self._last = float("-inf")

    def stepped(self, point: "Point", steps: int, examples_per_s: float) -> None:
        if time.monotonic() - self._last > _PLAIN_EVERY_S or point.step == steps:
            self._last = time.monotonic()
            figures = _figures(point, examples_per_s, self._unit)
            self.noted(f"step {point.step} of {steps}: {figures}")

    def noted(self, line: str) -> None:
        print(f"{self._name}: {line}", file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, name: str, unit: str, bars: Any) -> None:
        self._bars, self._unit = bars, unit
        self._task = bars.add_task(name, total=None, note="")

    def stepped(self, point: "Point", steps: int, examples_per_s: float) -> None:
        note = f"[dim]{_figures(point, examples_per_s, self._unit)}[/]"
        self._bars.update(self._task, total=steps, completed=point.step, note=note)

    def noted(self, line: str) -> None:
        self._bars.update(self._task, note=f"[dim]{line}[/]")


def _figures(point: "Point", examples_per_s: float, unit: str) -> str:
    return f"loss {point.losses['loss']:.4f}, {examples_per_s:.2f} {unit}/s"
