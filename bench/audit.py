"""What a run holds in the end, proposal by proposal, beside what it was asked for."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from pipeline.errors import ItemError
from pipeline.pictures import decode, sha256
from pipeline.types import BasePrompt, Record
from storage.objects import ObjectNotFound
from storage.runs import RunFolder
from workers import canvas

READS_AT_ONCE = 8


@dataclass
class Found:
    """Proposals, by what is wrong with them; `expected` and `recorded` are counts."""

    expected: int = 0
    recorded: int = 0  # of those expected
    failed: list[str] = field(default_factory=list)  # a failure on record, and no record
    missing: list[str] = field(default_factory=list)  # neither
    duplicated: list[str] = field(default_factory=list)  # records that disagree, or nobody's
    unreadable: list[str] = field(default_factory=list)  # no picture, or not the recorded one
    judged_twice: int = 0  # in two batches of records that agree; counted once by the product


def audit(folder: RunFolder, bases: Iterable[BasePrompt]) -> Found:
    """Read everything: every record of every batch, and every picture that a record names.

    bases: what the run was given, by whoever gave it; the store's own list is not asked.
    """
    found, run = Found(), folder.read()
    records: dict[str, list[Record]] = {}
    for batch in folder.record_batches():
        for record in folder.records_of(batch):
            records.setdefault(record.id, []).append(record)
    failed, expected = set(folder.failed_ids()), set()
    for base in bases:
        found.expected += run.proposals_per_base
        expansion = folder.read_expansion(base)
        batches = canvas.batches(run, expansion.prompts if expansion else ())
        proposals = {proposal.id for batch in batches for proposal in batch.proposals}
        # A prompt that did not come has no proposals yet: they count by its base prompt's name.
        unknown = [base.id] * (run.proposals_per_base - len(proposals))
        (found.failed if base.id in failed else found.missing).extend(unknown)
        for proposal in sorted(proposals - records.keys()):
            (found.failed if proposal in failed else found.missing).append(proposal)
        found.recorded += len(proposals & records.keys())
        expected |= proposals
    for proposal, some in records.items():
        if proposal not in expected or any(one != some[0] for one in some):
            found.duplicated.append(proposal)
        elif len(some) > 1:
            found.judged_twice += 1
    first = [some[0] for some in records.values()]
    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        whole = threads.map(partial(_is_whole, folder), first)
        found.unreadable = [
            record.id for record, is_whole in zip(first, whole, strict=True) if not is_whole
        ]
    return found


def _is_whole(folder: RunFolder, record: Record) -> bool:
    try:
        png = folder.read_image(record.id)
        decode(png)
    except (ObjectNotFound, ItemError):
        return False
    return sha256(png) == record.image_sha256
