"""The pictures of records, and the judge's reading of them, for the commands that measure."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.config import Run
from pipeline.miniature.canvas import SIZE_PX
from pipeline.miniature.truth import JUDGE, Truth, truth
from pipeline.taxonomy import load_taxonomy
from pipeline.types import Record
from storage.objects import ObjectNotFound
from storage.runs import RunFolder
from workers.pages.thumbnails import decoded

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.miniature.judge import Judge

JUDGED_AT_ONCE = 256  # pictures in memory together
READERS = 8  # threads that fetch them


def with_truth(
    drawn: Iterable[Record], folder: RunFolder, judge: "Judge | None"
) -> Iterator[tuple[Record, Truth | None]]:
    """Each record with its ground truth; None without a judge, or without a picture of its world.

    The pictures are fetched some at a time, by several threads, and judged together.
    """
    if judge is None:
        for record in drawn:
            yield record, None
        return
    some = iter(drawn)
    while batch := list(islice(some, JUDGED_AT_ONCE)):
        known = truths(judge, batch, read_pictures(folder, batch))
        for record in batch:
            yield record, known.get(record.id)


def truths(
    judge: "Judge", records: Sequence[Record], pictures: Sequence["Image.Image | None"]
) -> dict[str, Truth]:
    """By record. There is none of a picture that is as large as none of the drawn world is: of a
    photograph."""
    readable = [
        (record, picture)
        for record, picture in zip(records, pictures, strict=True)
        if picture is not None and picture.size == (SIZE_PX, SIZE_PX)
    ]
    prompts = [record.proposal.prompt for record, _ in readable]
    found = truth(judge, [picture for _, picture in readable], prompts)
    return {record.id: its for (record, _), its in zip(readable, found, strict=True)}


def judge_of(run: Run) -> "Judge | None":
    """The judge reads the drawn world, so it is asked where the taxonomy is that world's."""
    if run.taxonomy != load_taxonomy("miniature"):
        return None
    from pipeline.miniature.judge import load_judge

    return load_judge(JUDGE)


def read_pictures(folder: RunFolder, records: Sequence[Record]) -> "list[Image.Image | None]":
    """Each record's in RGB; None if it is gone or broken."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(partial(_picture, folder), records))


def _picture(folder: RunFolder, record: Record) -> "Image.Image | None":
    try:
        image = decoded(folder.read_image(record.id))
    except ObjectNotFound:
        return None
    return image.convert("RGB") if image else None
