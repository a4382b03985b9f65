"""`ppv status`: how far runs are, and what their fleet is doing."""

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli import options

if TYPE_CHECKING:
    from pipeline.config import Run
    from storage.objects import ObjectStore
    from storage.progress import Tally
    from workers.waiting import Wait


def status(
    run: options.AnyRun = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Queues, workers and runs, until RUN is done or Ctrl-C."),
    ] = False,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """Expected, done, accepted, rejected, failed and missing, by stage and category."""
    from datetime import timedelta

    from rich.console import Console

    from storage.progress import Progress
    from storage.runs import RunFolder, run_names
    from workers.cli.show import summary
    from workers.embedded import services, store_of
    from workers.settings import settings

    with services(settings(), broker=False) as children:
        store = store_of(settings())
        # Of embedded services that nobody else keeps up there is nothing to watch.
        if watch and not children:
            with suppress(KeyboardInterrupt):
                _watch(store, run)
            if not run:
                return
        names = [run] if run else run_names(store)
        for name in names:
            progress = Progress(RunFolder(store, name))
            tally = progress.update()
            per_s, eta_s = _pace(progress.run, tally)
            under_way, share, waits, refused = _from_the_broker(progress.run)
            if as_json:
                pace = {"judged_per_s": per_s, "eta_s": eta_s}
                flight = {"priority": progress.run.priority, "in_flight": under_way, "share": share}
                waiting = [{"reason": each.reason, "workers": len(each.workers)} for each in waits]
                said = {"waiting": waiting, "refused": refused}
                print(json.dumps({"run": name} | tally.as_json() | pace | flight | said))
                continue
            Console().print(summary(name, tally))
            if under_way:
                print(
                    f"{under_way} proposals are under way, of {share} that may be "
                    f"(priority {progress.run.priority})"
                )
            for each in waits:
                print(each.line)
            if refused:
                print(f"{refused} messages were refused; `ppv doctor` says why")
            if per_s and eta_s:
                eta = timedelta(seconds=round(eta_s))
                print(f"{per_s:.2f} proposals/s since it was made; about {eta} to go")
        if not names and not as_json:
            print(f"no runs in {store.address}")


def _watch(store: "ObjectStore", run: str | None) -> None:
    from contextlib import closing

    from pipeline.errors import ServiceError
    from workers.cli.overview import Overview, watch
    from workers.embedded import broker_of
    from workers.settings import settings

    try:
        broker = broker_of(settings())
    except ServiceError as error:
        watch(Overview(store, run, None, str(error)))
        return
    with closing(broker):
        watch(Overview(store, run, broker))


def _from_the_broker(run: "Run") -> "tuple[int | None, int | None, list[Wait], int]":
    """Proposals that were sent and are not done, and how many of them there may be now; what
    workers lack for the run; how many messages of any run were refused.

    Nothing where no broker can be asked: the rest is known without.
    """
    from contextlib import closing

    from pipeline.errors import ServiceError
    from workers.embedded import broker_of
    from workers.flight import Flight
    from workers.refusal import Refusals
    from workers.settings import settings
    from workers.waiting import Waiting

    try:
        with closing(broker_of(settings())) as broker:
            under_way, share = Flight(broker, run.name).share(run, settings().dispatch.in_flight)
            return under_way, share, Waiting(broker).of(run.name), Refusals(broker).count()
    except ServiceError:
        return None, None, [], 0


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
