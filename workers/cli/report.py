"""`ppv report`: a run as one page."""

from pathlib import Path
from typing import Annotated

import typer

from workers.cli import options


def report(
    run: options.Run,
    to: Annotated[Path | None, typer.Option(help="The file; RUN.html by default.")] = None,
    set_: options.Set = None,
) -> None:
    """One self-contained HTML page: pictures, scores, acceptance, what failed and why."""
    from storage.progress import Progress
    from storage.runs import RunFolder
    from workers.cli.results import write_page
    from workers.cli.session import open_for_reading

    with open_for_reading() as store:
        folder = RunFolder(store, run)
        to = to or Path(f"{folder.name}.html")
        write_page(folder, Progress(folder).update(), to)
    print(to)
