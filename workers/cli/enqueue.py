"""`ppv enqueue`: send base prompts to workers elsewhere."""

import sys
import time
from typing import TYPE_CHECKING

import typer

from workers.cli import options

if TYPE_CHECKING:
    from storage.runs import RunFolder
    from workers.broker import Broker
    from workers.fleet import Watch
    from workers.settings import Settings


def enqueue(
    file: options.File,
    run: options.NewRun,
    format: options.InputFormat = None,
    priority: options.Priority = None,
    set_: options.Set = None,
) -> None:
    """Only enqueue, to whichever broker is configured (or kept up by `ppv up`).

    Reads as fast as the workers work: memory stays the same for a file of any size. The same call
    again sends nothing twice. What gets lost is sent again by the worker on the queue mend.
    """
    from workers import dispatch
    from workers.cli.show import console
    from workers.embedded import broker_of, store_of
    from workers.inputs import read_bases
    from workers.settings import settings

    config = settings()
    bases = read_bases(file, format)
    broker = broker_of(config)
    broker.ping()
    folder = dispatch.open_run(store_of(config), config, run, priority)
    folder.entrust()
    waiting = _Waiting(folder, config, broker)
    counts = dispatch.enqueue(folder, bases, broker, config.dispatch, while_waiting=waiting)
    if counts.cancelled:
        folder.withdraw()
        console.print(f"run {run} was cancelled; the same call, or `ppv resume {run}`, goes on")
        raise typer.Exit(1)
    console.print(
        f"{counts.sent} base prompts enqueued in run {folder.name}; {counts.duplicates} "
        f"duplicates and {counts.known} that it had already were not sent again"
    )


class _Waiting:
    """Says, once, that nobody seems to work; and looks whether messages were lost."""

    _AFTER_S = 20.0

    def __init__(self, folder: "RunFolder", settings: "Settings", broker: "Broker") -> None:
        self._of = folder, settings, broker
        self._since = time.monotonic()
        self._watch: Watch | None = None

    def __call__(self) -> None:
        from workers.fleet import Watch

        if self._watch:
            self._watch.look()
        elif time.monotonic() - self._since > self._AFTER_S:
            self._watch = Watch(*self._of)
            print(
                "waiting for room; if no worker runs, start one for each queue: "
                "celery -A workers worker -Q prompt (propose, verify)",
                file=sys.stderr,
            )
