"""A run from beginning to end on this machine, for the commands that wait for one."""

import sys
from collections.abc import Iterable
from pathlib import Path

import typer

from pipeline.config import Priority
from pipeline.types import BasePrompt
from storage.progress import Tally
from storage.runs import RunFolder
from workers import dispatch
from workers.cli.results import write_dataset, write_page
from workers.cli.session import Session, session
from workers.cli.show import console, say, showing, summary
from workers.fleet import Crew, Watch
from workers.inputs import Format, read_bases
from workers.pages.wording import shorten, visible

_FAILURES_SHOWN = 10


def work(
    file: str,
    run_name: str,
    out: Path,
    format: Format | None = None,
    priority: Priority | None = None,
) -> None:
    """Enqueue, work, wait, export. Exits with 1 if something failed."""
    bases = read_bases(file, format)
    with session() as here:
        folder = dispatch.open_run(here.store, here.broker, here.settings, run_name, priority)
        counts, tally = see_through(here, folder, bases)
        _say_what_was_read(counts, tally)
        _conclude(here, folder, tally, out)


def see_through(
    here: Session, folder: RunFolder, bases: Iterable[BasePrompt]
) -> tuple[dispatch.Enqueued, Tally]:
    """Enqueue base prompts and wait until all that a run has is done, or it is cancelled."""
    with Crew(here.settings, here.children) as crew:
        return feed(here, folder, bases, crew)


def feed(
    here: Session, folder: RunFolder, bases: Iterable[BasePrompt], crew: Crew
) -> tuple[dispatch.Enqueued, Tally]:
    """The same, by workers that may go on to other runs."""
    with showing() as show:
        watch = Watch(folder, here.settings, here.broker, crew, show, say)
        counts = dispatch.enqueue(
            folder, bases, here.broker, here.settings.dispatch, while_waiting=watch.glance
        )
        if watch.over and counts.sent:  # it was done for a moment, when another had fed it
            watch = Watch(folder, here.settings, here.broker, crew, show, say)
        if counts.known:  # an earlier call was cut off, and its messages may be gone
            watch.doubt()
        return counts, watch.until_done()


def finish(run_name: str, out: Path, *, failed: bool) -> None:
    """Go on with what is missing, for `ppv resume`; with what failed, too, if asked."""
    with session() as here:
        folder = RunFolder(here.store, run_name)
        if dispatch.close_input(folder, here.broker):
            console.print(
                "the input was not read to its end; this goes on with what was enqueued, and the "
                "same `ppv run` again takes the rest"
            )
        here.broker.revive(folder.name)
        with showing() as show, Crew(here.settings, here.children) as crew:
            watch = Watch(folder, here.settings, here.broker, crew, show, say)
            watch.doubt()
            tally = watch.until_done()
            if failed and dispatch.forget_failures(folder):
                # Only now, that nothing is under way: a batch must not change while it is.
                watch = Watch(folder, here.settings, here.broker, crew, show, say)
                watch.doubt()
                tally = watch.until_done()
        _conclude(here, folder, tally, out)


def _say_what_was_read(counts: dispatch.Enqueued, tally: Tally) -> None:
    if counts.duplicates:
        console.print(f"{counts.duplicates} duplicate base prompts were done once")
    if not counts.sent and tally.finished:
        console.print("everything was done already")


def _conclude(here: Session, folder: RunFolder, tally: Tally, out: Path) -> None:
    """Write dataset and report and say what came of the run."""
    if here.broker.is_cancelled(folder.name):
        console.print(f"run {folder.name} was cancelled; `ppv resume {folder.name}` goes on")
        raise typer.Exit(1)
    console.print("[dim]writing dataset and report[/]")
    write_dataset(folder, tally, out / "dataset", "hf")
    write_page(folder, tally, out / "report.html")
    console.print(summary(folder.name, tally))
    if not tally.accepted:
        console.print("nothing was accepted: the dataset has its columns and no rows")
    print(f"report   {out / 'report.html'}\ndataset  {out / 'dataset'}")
    if tally.failed:
        list_failures(folder, f"ppv resume {folder.name} --failed")
        raise typer.Exit(1)


def list_failures(folder: RunFolder, again: str) -> None:
    """The first few on standard error. again: the command that tries them again."""
    failures = sorted(folder.failed_ids())
    for failure_id in failures[:_FAILURES_SHOWN]:
        failure = folder.read_failure(failure_id)
        error = shorten(visible(failure.error), 300)
        print(f"failed in {failure.stage}: {failure.subject[:60]!r}: {error}", file=sys.stderr)
    if len(failures) > _FAILURES_SHOWN:
        print(f"... and {len(failures) - _FAILURES_SHOWN} more, all in the report", file=sys.stderr)
    print(f"to try them again: {again}", file=sys.stderr)
