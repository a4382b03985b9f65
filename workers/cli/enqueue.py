"""`ppv enqueue`: send base prompts to workers elsewhere."""

import sys
import time

from workers.cli import options


def enqueue(
    file: options.File,
    run: options.NewRun,
    format: options.InputFormat = None,
    set_: options.Set = None,
) -> None:
    """Only enqueue, to whichever broker is configured (or kept up by `ppv up`).

    Reads as fast as the workers work: memory stays the same for a file of any size. The same call
    again sends nothing twice.
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
    folder = dispatch.open_run(store_of(config), config, run)
    waiting = _Hint()
    counts = dispatch.enqueue(folder, bases, broker, config.dispatch, while_waiting=waiting)
    console.print(
        f"{counts.sent} base prompts enqueued in run {folder.name}; {counts.duplicates} "
        f"duplicates and {counts.known} that it had already were not sent again"
    )


class _Hint:
    """Says, once, that nobody seems to work."""

    _AFTER_S = 20.0

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._said = False

    def __call__(self) -> None:
        if not self._said and time.monotonic() - self._since > self._AFTER_S:
            self._said = True
            print(
                "waiting for room in the queues; if no worker runs, start one for each queue: "
                "celery -A workers worker -Q prompt (propose, verify)",
                file=sys.stderr,
            )
