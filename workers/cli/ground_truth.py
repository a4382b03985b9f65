"""The judge's reading of pictures in a store, for the commands that measure."""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.config import Run
from pipeline.miniature.truth import JUDGE, Truth, truth
from pipeline.taxonomy import load_taxonomy
from pipeline.types import Record
from storage.objects import ObjectNotFound
from storage.runs import RunFolder

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.miniature.judge import Judge

JUDGED_AT_ONCE = 256  # pictures in memory together
READERS = 8  # threads that fetch them


def with_truth(
    drawn: Iterable[Record], folder: RunFolder, judge: "Judge | None"
) -> Iterator[tuple[Record, Truth | None]]:
    """Each record with its ground truth; None without a judge, or without a picture of its world.

    A stream: no more than JUDGED_AT_ONCE pictures are in memory.
    """
    if judge is None:
        for record in drawn:
            yield record, None
        return
    some = iter(drawn)
    with ThreadPoolExecutor(READERS) as pool:
        while batch := list(islice(some, JUDGED_AT_ONCE)):
            pictures = list(pool.map(partial(_drawn_picture, folder), batch))
            readable = [(r, p) for r, p in zip(batch, pictures, strict=True) if p is not None]
            prompts = [record.proposal.prompt for record, _ in readable]
            truths = truth(judge, [picture for _, picture in readable], prompts)
            known = {r.id: t for (r, _), t in zip(readable, truths, strict=True)}
            for record in batch:
                yield record, known.get(record.id)


def judge_of(run: Run) -> "Judge | None":
    """The judge reads the drawn world, so it is asked where the taxonomy is that world's."""
    if run.taxonomy != load_taxonomy("miniature"):
        return None
    from pipeline.miniature.judge import load_judge

    return load_judge(JUDGE)


def _drawn_picture(folder: RunFolder, record: Record) -> "Image.Image | None":
    """None if it is gone or broken, or as large as none of the drawn world is: a photograph."""
    from PIL import Image

    from pipeline.miniature.canvas import SIZE_PX

    try:
        with Image.open(io.BytesIO(folder.read_image(record.id))) as image:
            picture = image.convert("RGB")
    except (ObjectNotFound, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return picture if picture.size == (SIZE_PX, SIZE_PX) else None
