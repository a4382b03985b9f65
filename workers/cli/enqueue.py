"""`ppv enqueue`: send base prompts to workers elsewhere."""

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from pipeline.errors import ServiceError
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
    folder = dispatch.open_run(store_of(config), broker, config, run, priority)
    waiting = _Waiting(folder, config, broker)
    counts = dispatch.enqueue(folder, bases, broker, config.dispatch, waiting, entrust=True)
    if counts.cancelled:
        folder.withdraw()
        console.print(f"run {run} was cancelled; the same call, or `ppv resume {run}`, goes on")
        raise typer.Exit(1)
    console.print(
        f"{counts.sent} base prompts enqueued in run {folder.name}; {counts.duplicates} "
        f"duplicates and {counts.known} that it had already were not sent again"
    )


class _Waiting:
    """When nothing moves any more: says so once, and has what was lost sent again.

    Not before: the first look reads the records of the whole run.
    """

    _AFTER_S = 20.0

    def __init__(self, folder: "RunFolder", settings: "Settings", broker: "Broker") -> None:
        from workers.flight import Flight

        self._folder, self._settings, self._broker = folder, settings, broker
        self._run, self._flight = folder.read(), Flight(broker, folder.name)
        self._under_way, self._since = -1, time.monotonic()
        self._watch: Watch | None = None

    def __call__(self) -> None:
        from workers.fleet import Watch

        with suppress(ServiceError):  # which the caller waits for
            window = self._settings.dispatch.in_flight
            under_way = self._flight.share(self._run, window).under_way
            if under_way != self._under_way:
                self._under_way, self._since = under_way, time.monotonic()
        if self._watch is None:
            if time.monotonic() - self._since < self._AFTER_S:
                return
            self._watch = Watch(self._folder, self._settings, self._broker)
            print(
                "waiting for room; if no worker runs, start one for each queue: "
                "celery -A workers worker -Q prompt (propose, verify)",
                file=sys.stderr,
            )
        self._watch.glance()
