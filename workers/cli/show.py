"""What a person sees while a run goes on: a bar a stage, or plain lines in a pipe."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from storage.progress import Tally

_PLAIN_EVERY_S = 5.0

console = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """A line for people, above the bars if there are some."""
    console.print(line, markup=False, soft_wrap=True)


class Show(Protocol):
    def __call__(self, tally: Tally) -> None: ...


@contextmanager
def showing() -> Iterator[Show]:
    """A function to be called with each new tally."""
    if not console.is_terminal:
        yield _PlainLines()
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:<8}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield _Bars(bars)


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {
            stage: bars.add_task(stage, total=None, note="")
            for stage in ("prompt", "propose", "verify")
        }
        self._rates = {stage: _Rate() for stage in self._tasks}

    def __call__(self, tally: Tally) -> None:
        judged = f"[green]{tally.accepted} accepted[/] [dim]{tally.rejected} rejected[/]" + (
            f" [red]{tally.failed} failed[/]" if tally.failed else ""
        )
        failed = tally.failed
        self._update("prompt", tally.prompted, tally.base_prompts, "base prompts")
        self._update("propose", tally.drawn, tally.expected - failed, "images")
        self._update("verify", tally.judged, tally.expected - failed, judged)

    def _update(self, stage: str, done: int, total: int, note: str) -> None:
        rate = self._rates[stage].per_second(done)
        note += f" [dim]{rate:.1f}/s[/]" if rate else ""
        self._bars.update(self._tasks[stage], completed=done, total=total or None, note=note)


class _PlainLines:
    """One line every few seconds if something is new, and one at the end."""

    def __init__(self) -> None:
        self._last, self._line = float("-inf"), ""

    def __call__(self, tally: Tally) -> None:
        line = (
            f"prompted {tally.prompted}/{tally.base_prompts}, drawn {tally.drawn}, judged "
            f"{tally.judged}/{tally.expected}: {tally.accepted} accepted, {tally.rejected} "
            f"rejected, {tally.failed} failed"
        )
        soon = time.monotonic() - self._last < _PLAIN_EVERY_S and not tally.finished
        if soon or line == self._line:
            return
        self._last, self._line = time.monotonic(), line
        print(line, file=sys.stderr, flush=True)


class Count(Protocol):
    def __call__(self, stage: str, done: int, total: int | None) -> None: ...


@contextmanager
def counting() -> Iterator[Count]:
    """A function to be called with how far a stage is: a bar each, or lines in a pipe."""
    rates: dict[str, _Rate] = {}
    if not console.is_terminal:
        last: dict[str, float] = {}

        def line(stage: str, done: int, total: int | None) -> None:
            rate = rates.setdefault(stage, _Rate()).per_second(done)
            now = time.monotonic()
            if now - last.setdefault(stage, now) >= _PLAIN_EVERY_S:
                last[stage] = now
                of = f" of {total}, {_left((total - done) / rate)} left" if total and rate else ""
                print(f"{stage}: {done}{of}, {rate:.1f}/s", file=sys.stderr, flush=True)

        yield line
        return
    columns = TextColumn("{task.description}"), BarColumn(bar_width=32), MofNCompleteColumn()
    rest = TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, *rest, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def bar(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note="")
            rate = rates.setdefault(stage, _Rate()).per_second(done)
            note = f"[dim]{rate:.1f}/s[/]" if rate else ""
            bars.update(tasks[stage], completed=done, total=total, note=note)

        yield bar


def _left(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes else "less than a minute"


class _Rate:
    """Things a second since the first look that found new ones."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def per_second(self, done: int) -> float:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        since, before = self._first
        return (done - before) / (now - since) if now - since > 1 else 0.0


def summary(name: str, tally: Tally) -> Table:
    """Acceptance by category, and what is missing."""
    table = Table(title=f"run {name}", title_justify="left")
    for column in ("category", "accepted", "rejected", "acceptance"):
        table.add_column(column, justify="left" if column == "category" else "right")
    for category, counts in sorted(tally.by_category.items()):
        share = counts.accepted / (counts.accepted + counts.rejected)
        table.add_row(category, str(counts.accepted), str(counts.rejected), f"{share:.0%}")
    overall = f"{tally.accepted / tally.judged:.0%}" if tally.judged else "-"
    table.add_section()
    table.add_row("all", str(tally.accepted), str(tally.rejected), overall)
    table.caption = (
        f"{tally.expected} proposals expected, {tally.failed} failed, {tally.missing} missing"
    )
    table.caption_justify = "left"
    return table
