"""A fleet at a glance, again and again: its queues, its workers, and the runs under way."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.errors import ServiceError
from storage.objects import ObjectStore
from storage.progress import Progress, Tally
from storage.runs import RunFolder, run_names
from workers.broker import QUEUES, Broker
from workers.cli.show import console
from workers.dispatch import PATIENCE_S
from workers.snapshot import Snapshot
from workers.waiting import Waiting

WINDOW_S = 60.0  # of rates
_PLAIN_EVERY_S = 5.0
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 20.0
_RUNS_SHOWN = 15


class Pace:
    """How fast a count grew within the last minute, or since the first look."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def per_s(self, count: float, now: float) -> float:
        if self._seen and count < self._seen[-1][1]:  # a Redis that was wiped
            self._seen.clear()
        self._seen.append((now, count))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        return (count - before) / (now - since) if now - since >= 1 else 0.0


@dataclass(frozen=True)
class QueueRow:
    queue: str
    waiting: int
    oldest_s: float
    workers: int
    busy: float  # share of its workers' time, in [0, 1]
    per_s: float  # base prompts, or images

    @property
    def troubled(self) -> bool:
        return bool(self.waiting and not self.workers)


@dataclass(frozen=True)
class RunRow:
    run: str
    tally: Tally
    per_s: float  # of what is judged or given up
    cancelled: bool = False
    waits: tuple[str, ...] = ()  # for what, by the workers that lack it

    @property
    def done(self) -> int:
        return self.tally.judged + self.tally.failed

    @property
    def left(self) -> str:
        """How long it still takes, as far as the last minute tells."""
        if self.tally.finished:
            return "done"
        if self.cancelled:
            return "cancelled"
        if not self.tally.missing or not self.per_s:
            return "-"
        return str(timedelta(seconds=round(self.tally.missing / self.per_s)))


class Overview:
    """only: the one run to look at. broker: None where there is none, for the reason given."""

    def __init__(
        self, store: ObjectStore, only: str | None, broker: Broker | None, reason: str = ""
    ) -> None:
        self._store, self._only, self._broker = store, only, broker
        self.trouble = reason
        self.queues: list[QueueRow] = []
        self.runs: dict[str, RunRow] = {}
        self._progress: dict[str, Progress] = {}
        self._paces: dict[str, Pace] = {}
        self._cancelled: frozenset[str] = frozenset()
        self._looked = False  # at all of it
        self._over_before: set[str] = set()  # runs that were, when we first looked

    @property
    def over(self) -> bool:
        """Whether the one run is done or cancelled; all runs never are."""
        row = self.runs.get(self._only or "")
        return row is not None and (row.tally.finished or row.cancelled)

    def look(self) -> Iterator[None]:
        """Each step leaves more of it up to date. Raises ServiceError where the store is away."""
        if self._broker:
            try:
                self._look_at_queues(Snapshot.take(self._broker))
                self.trouble = ""
            except ServiceError as error:
                self.queues, self.trouble = [], str(error)
        yield
        for run in [self._only] if self._only else run_names(self._store):
            row = self.runs.get(run)
            if run not in self._over_before and not (row and row.tally.finished):
                self._look_at_run(run)
                yield
        self._looked = True

    def _look_at_queues(self, snapshot: Snapshot) -> None:
        now = time.monotonic()
        self._cancelled = snapshot.cancelled
        self.queues = []
        for queue in QUEUES:
            processes = sum(n for (of, _), n in snapshot.processes.items() if of == queue)
            busy_s = sum(
                seconds
                for (of, _), seconds in snapshot.counters.get("busy_seconds", {}).items()
                if of == queue
            )
            items = snapshot.counters.get("batch_size_sum", {}).get((queue,), 0.0)
            busy = self._pace(f"busy {queue}").per_s(busy_s, now)
            self.queues.append(
                QueueRow(
                    queue=queue,
                    waiting=snapshot.depths[queue],
                    oldest_s=snapshot.oldest_s[queue],
                    workers=snapshot.workers(queue),
                    busy=min(1.0, busy / processes) if processes else 0.0,
                    per_s=self._pace(f"items {queue}").per_s(items, now),
                )
            )

    def _look_at_run(self, run: str) -> None:
        progress = self._progress.get(run)
        if progress is None:
            progress = self._progress[run] = Progress(RunFolder(self._store, run))
        tally = progress.update()
        cancelled = run in self._cancelled
        if (tally.finished or cancelled) and not self._looked and not self._only:
            self._over_before.add(run)
            del self._progress[run]
            return
        done = tally.judged + tally.failed
        per_s = self._pace(f"run {run}").per_s(done, time.monotonic())
        waits = () if tally.finished or cancelled else self._waits(run)
        self.runs[run] = RunRow(run, tally, per_s, cancelled, waits)
        if tally.finished:
            del self._progress[run]

    def _waits(self, run: str) -> tuple[str, ...]:
        if not self._broker or self.trouble:
            return ()
        with suppress(ServiceError):  # the next look at the queues says so
            return tuple(wait.line for wait in Waiting(self._broker).of(run))
        return ()

    def _pace(self, name: str) -> Pace:
        return self._paces.setdefault(name, Pace())


def watch(overview: Overview) -> None:
    """Look until the one run is done, or until Ctrl-C.

    Raises ServiceError when the store stays away.
    """
    away_since: float | None = None
    with _shown(overview) as show:
        while not overview.over:
            started = time.monotonic()
            try:
                for _ in overview.look():
                    show(False)
                away_since = None
            except ServiceError as error:
                away_since = away_since or started
                if started - away_since > PATIENCE_S:
                    raise
                overview.trouble = str(error)
            show(True)
            # A look costs the store listings: at most a tenth of the time goes into those.
            took_s = time.monotonic() - started
            if not overview.over:
                time.sleep(min(max(_SHORTEST_PAUSE_S, 9 * took_s), _LONGEST_PAUSE_S))


@contextmanager
def _shown(overview: Overview) -> Iterator[Callable[[bool], None]]:
    """A function that shows it; it is told whether a look is complete."""
    if not console.is_terminal:
        yield _Lines(overview)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield lambda complete: live.update(drawn(overview), refresh=True)


class _Lines:
    """What is new, every few seconds."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._next_at, self._said = 0.0, ""

    def __call__(self, complete: bool) -> None:
        if not complete or (time.monotonic() < self._next_at and not self._overview.over):
            return
        text = "\n".join(lines(self._overview))
        if text and text != self._said:
            self._said, self._next_at = text, time.monotonic() + _PLAIN_EVERY_S
            print(text, file=sys.stderr, flush=True)


def lines(overview: Overview) -> Iterator[str]:
    if overview.trouble:
        yield overview.trouble
    if overview.queues:
        yield "; ".join(
            f"{row.queue} {row.waiting} waiting, {counted(row.workers, 'worker')}, "
            f"{row.per_s:.1f}/s, {row.busy:.0%} busy"
            for row in overview.queues
        )
    for row in overview.runs.values():
        tally = row.tally
        yield (
            f"{row.run}: {row.done}/{tally.expected} done: {tally.accepted} accepted, "
            f"{tally.rejected} rejected, {tally.failed} failed; {row.per_s:.1f}/s, {row.left}"
            + (" to go" if ":" in row.left else "")
            + "".join(f"; {wait}" for wait in row.waits)
        )


def drawn(overview: Overview) -> Group:
    """For a terminal."""
    parts: list[Table | Text] = []
    if overview.queues:
        parts += [_queues(overview.queues), Text()]
    if overview.runs:
        parts.append(_runs(list(overview.runs.values())))
        parts += [
            Text(f"{row.run}: {wait}", style="yellow")
            for row in overview.runs.values()
            for wait in row.waits
        ]
    if overview.trouble:
        parts.append(Text(overview.trouble, style="yellow"))
    return Group(*parts)


def _queues(rows: list[QueueRow]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("queue", "waiting", "oldest", "workers", "busy", "items/s"):
        table.add_column(column, justify="left" if column == "queue" else "right")
    for row in rows:
        table.add_row(
            row.queue,
            str(row.waiting),
            str(timedelta(seconds=round(row.oldest_s))) if row.waiting else "-",
            Text(str(row.workers), style="red" if row.troubled else ""),
            f"{row.busy:.0%}",
            f"{row.per_s:.1f}",
        )
    return table


def _runs(rows: list[RunRow]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("run", no_wrap=True, max_width=24)
    table.add_column("")
    for column in ("done", "accepted", "rejected", "failed", "/s", "to go"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = sorted(rows, key=lambda row: row.tally.finished)  # the others first
    for row in rows[:_RUNS_SHOWN]:
        tally = row.tally
        accepted = f" {tally.accepted / tally.judged:.0%}" if tally.judged else ""
        table.add_row(
            row.run,
            ProgressBar(total=max(1, tally.expected), completed=row.done, width=16),
            f"{row.done}/{tally.expected}",
            Text(f"{tally.accepted}{accepted}", style="green"),
            str(tally.rejected),
            Text(str(tally.failed), style="red" if tally.failed else ""),
            f"{row.per_s:.1f}",
            row.left,
        )
    if len(rows) > _RUNS_SHOWN:
        table.add_row(f"and {len(rows) - _RUNS_SHOWN} more")
    return table


def counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
