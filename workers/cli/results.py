"""What a run leaves in a folder: a dataset and a page."""

import importlib.metadata
from pathlib import Path

from storage.cards import CardFacts, CategoryCount, ExportFormat
from storage.export import export
from storage.progress import Tally, failures, records
from storage.runs import RunFolder
from storage.spending import spending
from workers.pages.report import write_report


def write_dataset(folder: RunFolder, tally: Tally, to: Path, format: ExportFormat) -> int:
    """The accepted records of a run as a dataset; returns how many there are."""
    run = folder.read()
    facts = CardFacts(
        run=run.name,
        version=importlib.metadata.version("ppv"),
        created=run.created_at[:10],
        accepted=tally.accepted,
        rejected=tally.rejected,
        failed=tally.failed,
        categories=tuple(
            CategoryCount(category=name, accepted=counts.accepted, rejected=counts.rejected)
            for name, counts in sorted(tally.by_category.items())
        ),
        prompter=run.prompter_ref.name,
        proposers=run.proposers,
        verifier=run.verifier_ref,
        thresholds=run.thresholds,
        accept_if=run.verifier.accept_if,
    )
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
