"""`ppv status`: how far a run is."""

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli import options

if TYPE_CHECKING:
    from pipeline.config import Run
    from storage.progress import Tally
    from workers.waiting import Wait


def status(
    run: options.AnyRun = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again until it is done.")] = False,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """Expected, done, accepted, rejected, failed and missing, by stage and category."""
    from datetime import timedelta

    from rich.console import Console

    from storage.progress import Progress
    from storage.runs import RunFolder, run_names
    from workers.cli.session import open_for_reading
    from workers.cli.show import showing, summary

    with open_for_reading() as store:
        names = [run] if run else run_names(store)
        if watch and run:
            progress = Progress(RunFolder(store, run))
            with showing() as show:
                while not progress.update().finished:
                    show(progress.tally)
                    time.sleep(2)
                show(progress.tally)
        for name in names:
            progress = Progress(RunFolder(store, name))
            tally = progress.update()
            per_s, eta_s = _pace(progress.run, tally)
            waits, refused = _from_the_broker(name)
            if as_json:
                pace = {"judged_per_s": per_s, "eta_s": eta_s}
                waiting = [{"reason": each.reason, "workers": len(each.workers)} for each in waits]
                said = {"waiting": waiting, "refused": refused}
                print(json.dumps({"run": name} | tally.as_json() | pace | said))
                continue
            Console().print(summary(name, tally))
            for each in waits:
                print(each.line)
            if refused:
                print(f"{refused} messages were refused; `ppv doctor` says why")
            if per_s and eta_s:
                eta = timedelta(seconds=round(eta_s))
                print(f"{per_s:.2f} proposals/s since it was made; about {eta} to go")
        if not names and not as_json:
            print(f"no runs in {store.address}")


def _from_the_broker(run: str) -> "tuple[list[Wait], int]":
    """What workers lack for a run, and how many messages they refused; nothing if it is away."""
    from contextlib import closing, suppress

    from pipeline.errors import ServiceError
    from workers.embedded import broker_of
    from workers.refusal import Refusals
    from workers.settings import settings
    from workers.waiting import Waiting

    with suppress(ServiceError), closing(broker_of(settings())) as broker:
        return Waiting(broker).of(run), Refusals(broker).count()
    return [], 0


def _pace(run: "Run", tally: "Tally") -> tuple[float | None, float | None]:
    """Verdicts a second since the run was made, and seconds to go; None where that says nothing.

    A mean over everything, pauses too; `--watch` shows the rate of the moment.
    """
    from datetime import UTC, datetime

    seconds = (datetime.now(UTC) - datetime.fromisoformat(run.created_at)).total_seconds()
    if tally.finished or not tally.judged or seconds <= 0:
        return None, None
    per_s = tally.judged / seconds
    return per_s, tally.missing / per_s
