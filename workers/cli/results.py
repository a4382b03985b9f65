"""What a run leaves in a folder: a dataset and a page."""

from pathlib import Path

from storage.cards import ExportFormat, facts_of
from storage.export import export
from storage.progress import Tally, failures, records
from storage.runs import RunFolder
from storage.spending import spending
from workers.pages.report import write_report


def write_dataset(folder: RunFolder, tally: Tally, to: Path, format: ExportFormat) -> int:
    """The accepted records of a run as a dataset; returns how many there are."""
    facts = facts_of(folder.read(), tally)
    accepted = (record for record in records(folder) if record.verdict.accepted)
    return export(accepted, lambda each: folder.read_image(each.id), to, format, facts).images


def write_page(folder: RunFolder, tally: Tally, to: Path) -> None:
    """The page of a run, whole or not at all."""
    write_report(
        folder.read(),
        records(folder),
        failures(folder),
        tally,
        lambda record: folder.read_image(record.id),
        to,
        usage=spending(folder),
    )
