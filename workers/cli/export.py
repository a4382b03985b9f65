"""`ppv export`: the accepted records as a dataset."""

from pathlib import Path
from typing import Annotated

import typer

from workers.cli import options


def export(
    run: options.Run,
    to: Annotated[Path, typer.Option(help="The dataset's folder.")],
    format: options.ExportFormat = "hf",
    set_: options.Set = None,
) -> None:
    """The accepted records as a dataset with its card, for datasets, webdataset or a folder."""
    from storage.progress import Progress
    from storage.runs import RunFolder
    from workers.cli.results import write_dataset
    from workers.cli.session import open_for_reading

    with open_for_reading() as store:
        folder = RunFolder(store, run)
        count = write_dataset(folder, Progress(folder).update(), to, format)
    print(f"{count} images in {to}")
