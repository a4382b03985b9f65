"""`ppv status`: how far a run is."""

import json
import time
from typing import Annotated

import typer

from workers.cli import options


def status(
    run: options.AnyRun = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again until it is done.")] = False,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """Expected, done, accepted, rejected, failed and missing, by stage and category."""
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
            if as_json:
                print(json.dumps({"run": name} | tally.as_json()))
            else:
                Console().print(summary(name, tally))
        if not names and not as_json:
            print(f"no runs in {store.address}")
