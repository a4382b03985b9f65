"""`ppv status`: how far a run is."""

import json
import time
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli import options

if TYPE_CHECKING:
    from pipeline.config import Run
    from storage.progress import Tally


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
            under_way, share = _under_way(progress.run)
            if as_json:
                pace = {"judged_per_s": per_s, "eta_s": eta_s}
                flight = {"priority": progress.run.priority, "in_flight": under_way, "share": share}
                print(json.dumps({"run": name} | tally.as_json() | pace | flight))
                continue
            Console().print(summary(name, tally))
            if under_way:
                print(
                    f"{under_way} proposals are under way, of {share} that may be "
                    f"(priority {progress.run.priority})"
                )
            if per_s and eta_s:
                eta = timedelta(seconds=round(eta_s))
                print(f"{per_s:.2f} proposals/s since it was made; about {eta} to go")
        if not names and not as_json:
            print(f"no runs in {store.address}")


def _under_way(run: "Run") -> tuple[int | None, int | None]:
    """Proposals that were sent and are not done, and how many of them there may be now.

    None where no broker can be asked: the rest is known without.
    """
    from contextlib import closing

    from pipeline.errors import ServiceError
    from workers.embedded import broker_of
    from workers.flight import Flight
    from workers.settings import settings

    try:
        with closing(broker_of(settings())) as broker:
            return Flight(broker, run.name).share(run, settings().dispatch.in_flight)
    except ServiceError:
        return None, None


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
