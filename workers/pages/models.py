"""The page of a comparison of models: figures with intervals, and pictures side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.models import (
    Against,
    Estimate,
    Metric,
    SuiteFigures,
    clearly,
    shown_metrics,
)
from pipeline.evaluation.suites import Line, Suite
from pipeline.miniature.truth import Truth
from pipeline.types import Record, digest
from storage.objects import ObjectNotFound
from storage.runs import RunFolder
from workers.pages.atomic import replacing
from workers.pages.charts import share
from workers.pages.proposers import MINUS, NOTHING, points
from workers.pages.rendering import content_security_policy, environment, inlined
from workers.pages.report import data_uri
from workers.pages.thumbnails import decoded
from workers.pages.wording import visible

PROMPTS = 8  # of a suite, whose pictures are shown
PROMPT_CHARACTERS = 600


@dataclass(frozen=True)
class Sample:
    """One picture, with its ground truth where that is known."""

    record: Record
    truth: Truth | None


class Gallery:
    """A few prompts of a suite, and what every arm drew of them from its smallest seed.

    The prompts are those with the smallest hashes: no picture is there for its looks.
    """

    def __init__(self, suite: Suite, arms: Sequence[str]) -> None:
        self._arms = tuple(arms)
        chosen = sorted(suite.lines, key=lambda line: digest(line.prompt))[:PROMPTS]
        self._kept: dict[str, dict[int, Sample]] = {line.prompt: {} for line in chosen}

    def add(self, arm: int, line: Line, record: Record, truth: Truth | None) -> None:
        kept = self._kept.get(line.prompt)
        if kept is None:
            return
        if arm not in kept or record.proposal.seed < kept[arm].record.proposal.seed:
            kept[arm] = Sample(record, truth)

    def sizes(self, arm: str, folder: RunFolder) -> set[tuple[int, int]]:
        """Width and height of the arm's pictures that are kept, as far as they can be read."""
        at, found = self._arms.index(arm), set()
        for kept in self._kept.values():
            picture = _picture(folder, kept[at].record) if at in kept else None
            image = decoded(picture) if picture else None
            if image is not None:
                found.add(image.size)
        return found

    def strips(self, folders: Mapping[str, RunFolder]) -> "list[Strip]":
        """Of each prompt that is kept, with a place for every arm."""
        return [
            Strip(
                prompt,
                [
                    Tile(label, kept.get(at), folders[label])
                    for at, label in enumerate(self._arms)
                ],
            )
            for prompt, kept in self._kept.items()
        ]  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """A place in a strip; its picture is fetched when the page comes to it."""

    label: str
    sample: Sample | None
    folder: RunFolder

    def picture(self) -> str | None:
        """A data: URI, or None if it was not drawn, is gone or broken."""
        picture = _picture(self.folder, self.sample.record) if self.sample else None
        return data_uri(picture) if picture else None

    def text(self) -> str:
        """What it was drawn from."""
        return self.sample.record.proposal.prompt.text if self.sample else ""


@dataclass(frozen=True)
class Strip:
    """One prompt of a suite, drawn by every arm."""

    prompt: str
    tiles: list[Tile]


def _picture(folder: RunFolder, record: Record) -> bytes | None:
    try:
        return folder.read_image(record.id)
    except ObjectNotFound:
        return None


# Words


def figure(metric: Metric, value: float) -> str:
    """A mean as people read it."""
    return share(value) if metric.unit == "share" else f"{value:.3f}".replace("-", MINUS)


def between(metric: Metric, low: float | None, high: float | None) -> str:
    """Of an interval, with an en dash; "" where there is none."""
    if low is None or high is None:
        return ""
    return f"{figure(metric, low).removesuffix('%')}{NOTHING}{figure(metric, high)}"


def difference(metric: Metric, against: Against) -> str:
    """With its sign; shares in percentage points."""
    if metric.unit == "share":
        return points(against.difference)
    return f"{against.difference:+.3f}".replace("-", MINUS)


def tone(metric: Metric, against: Against) -> str:
    """The class of a difference whose interval is clear of zero."""
    return {"better": "fewer", "worse": "more", "": ""}[clearly(metric, against)]


# The page


@dataclass(frozen=True)
class Cell:
    """One arm and metric. against: the first arm; None for that itself."""

    metric: Metric
    found: Estimate | None
    against: Against | None


@dataclass(frozen=True)
class Section:
    """One suite."""

    name: str
    prompts: int
    metrics: list[Metric]
    rows: list[tuple[str, int, list[Cell]]]
    strips: list[Strip]


def write_models_page(
    arms: Sequence[tuple[str, RunFolder]],
    suites: Mapping[str, SuiteFigures],
    galleries: Mapping[str, Gallery],
    notes: Sequence[str],
    to: Path,
) -> None:
    """Write the page of a comparison to the file `to`, whole or not at all.

    arms: their labels and runs, the one that the others are compared with first.
    """
    folders = dict(arms)
    style = inlined("report.css", "proposers.css")
    templates = environment(PROMPT_CHARACTERS)
    templates.globals |= {
        "figure": figure, "between": between, "difference": difference, "tone": tone,
    }  # fmt: skip
    page = templates.get_template("models.html.j2").stream(
        arms=[label for label, _ in arms],
        sections=[
            _section(name, figures, galleries[name].strips(folders))
            for name, figures in suites.items()
        ],
        notes=[visible(note) for note in notes],
        style=style,
        policy=content_security_policy(style),
    )
    page.enable_buffering()
    with replacing(to) as file:
        for part in page:
            file.write(part.encode())


def _section(name: str, suite: SuiteFigures, strips: list[Strip]) -> Section:
    first, metrics = next(iter(suite.arms)), shown_metrics(suite)
    rows = [
        (
            label,
            arm.pictures,
            [
                Cell(m, arm.metrics.get(m.name), arm.against.get(first, {}).get(m.name))
                for m in metrics
            ],
        )
        for label, arm in suite.arms.items()
    ]
    return Section(name, suite.prompts, metrics, rows, strips)
