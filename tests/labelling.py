"""Runs to label, and the command that serves their page."""

import io
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from pipeline.labels import Label
from pipeline.types import (
    DetailedPrompt,
    ProposalBatch,
    ProposerRef,
    Record,
    Sampler,
    digest,
)
from storage.folder import FolderStore
from storage.runs import RunFolder
from tests.served import PPV, Served, environment, serving
from tests.tiny import a_record, a_run

MODEL = ProposerRef(name="miniature", weights="sha256:" + "0123456789abcdef" * 4)


def a_run_to_label(
    store: Path, pictures: int, *, name: str = "demo", texts: Sequence[str] = ()
) -> list[Record]:
    """A run of that many records, each with a picture of its own colour, in a folder's store.

    The n-th one's scores are a little farther from the thresholds than those of the one before.
    """
    folder = RunFolder(FolderStore(store), name)
    folder.write(a_run(base_prompts=pictures).model_copy(update={"name": name}))
    records = []
    for begin in range(0, pictures, 500):
        images = []
        for number in range(begin, min(begin + 500, pictures)):
            text = texts[number % len(texts)] if texts else f"a hand holding mug {number}"
            prompt = DetailedPrompt(
                id=digest(["prompt", name, number]),
                base=f"mug {number // 4}",
                index=number % 4,
                text=text,
                category=("power", "pinch", "hook")[number % 3],
            )
            images.append((prompt, number))
        batch = ProposalBatch.of(name, MODEL, Sampler(), images)
        some = [
            a_record(proposal, 0.5 + 0.4 * (begin + i) / pictures, 1.0, run=name)
            for i, proposal in enumerate(batch.proposals)
        ]
        folder.write_records(batch, some)
        records += some
    for number, record in enumerate(records):
        path = store / "runs" / name / record.image  # 10,000 puts would wait for the disk each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(a_picture(number))
    return records


def a_picture(number: int) -> bytes:
    file = io.BytesIO()
    colour = (number * 37 % 256, number * 91 % 256, 255 - number * 13 % 256)
    Image.new("RGB", (64, 64), colour).save(file, "PNG", compress_level=1)
    return file.getvalue()


def ppv_label(place: Path, *options: str, run: str = "demo") -> "subprocess.CompletedProcess[str]":
    """The command with options that make it end by itself."""
    return subprocess.run(
        [*PPV, "label", run, *options],
        env=environment(place),
        cwd=place,
        capture_output=True,
        text=True,
    )


@contextmanager
def labelling(place: Path, *options: str, annotator: str = "ann") -> Iterator[Served]:
    """`ppv label demo`, up until the block ends."""
    with serving(place, "label", "demo", "--annotator", annotator, *options) as served:
        yield served


def journal(place: Path, annotator: str = "ann") -> list[Label]:
    """What an annotator said of run demo, as it lies on this machine's disk."""
    path = place / "state" / "labels" / f"demo.{annotator}.jsonl"
    return [Label.model_validate_json(line) for line in path.read_bytes().splitlines()]
