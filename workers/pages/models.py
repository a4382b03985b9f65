"""The page of a comparison of models: figures with intervals, and pictures side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.models import (
    Against,
    Estimate,
    Metric,
    SuiteFigures,
    Wins,
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
from workers.pages.proposers import MINUS, points
from workers.pages.rendering import content_security_policy, environment, inlined
from workers.pages.report import data_uri
from workers.pages.thumbnails import decoded
from workers.pages.wording import visible

PROMPTS = 8  # of a suite, whose pictures are shown
PROMPT_CHARACTERS = 600
LEADING = 2  # metrics that are shown category by category


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

    def rows(self, folders: Mapping[str, RunFolder]) -> Iterator[tuple[str, list[bytes | None]]]:
        """Each arm's pictures of the prompts that are kept; None for one that cannot be shown."""
        for at, label in enumerate(self._arms):
            pictures = [
                _picture(folders[label], kept[at].record) if at in kept else None
                for kept in self._kept.values()
            ]
            yield label, [each if each and decoded(each) else None for each in pictures]

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
    return share(value) if metric.unit == "share" else _score(value)


def between(metric: Metric, low: float | None, high: float | None) -> str:
    """Of a mean's interval; "" where there is none."""
    if low is None or high is None:
        return ""
    return f"{figure(metric, low).removesuffix('%')} to {figure(metric, high)}"


def difference(metric: Metric, against: Against) -> str:
    """With its sign; shares in percentage points."""
    return _signed(metric, against.difference)


def gap(metric: Metric, against: Against) -> str:
    """Of a difference's interval; "" where there is none."""
    if against.low is None or against.high is None:
        return ""
    return f"{_signed(metric, against.low)} to {_signed(metric, against.high)}"


def tone(metric: Metric, against: Against) -> str:
    """The class of a difference whose interval is clear of zero."""
    return {"better": "fewer", "worse": "more", "": ""}[clearly(metric, against)]


def _signed(metric: Metric, value: float) -> str:
    if metric.unit == "share":
        return points(value)
    words = _score(value)
    return f"+{words}" if value > 0 and float(words) else words


def _score(value: float) -> str:
    """Three decimals, from 10 on one; never a minus before nothing."""
    rounded = round(value, 1 if abs(value) >= 10 else 3) + 0.0
    return f"{rounded:.{1 if abs(value) >= 10 else 3}f}".replace("-", MINUS)


# The page


@dataclass(frozen=True)
class Cell:
    """A metric of one arm. against, wins: beside the first arm; None for that itself."""

    found: Estimate | None
    against: Against | None = None
    wins: Wins | None = None


@dataclass(frozen=True)
class Row:
    """A metric, with a cell for every arm. name: the metric's, or a category's."""

    name: str
    metric: Metric
    cells: list[Cell]


@dataclass(frozen=True)
class Section:
    """One suite. categories: of its leading metrics, a row for each category."""

    name: str
    prompts: int
    pictures: list[int]
    rows: list[Row]
    categories: dict[str, list[Row]]
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
    words = (figure, between, difference, gap, tone, share)
    templates.globals |= {each.__name__: each for each in words}
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
    first, arms, metrics = next(iter(suite.arms)), list(suite.arms.values()), shown_metrics(suite)
    rows = [
        Row(
            metric.title,
            metric,
            [
                Cell(
                    arm.metrics.get(metric.name),
                    arm.against.get(first, {}).get(metric.name),
                    arm.wins.get(metric.name),
                )
                for arm in arms
            ],
        )
        for metric in metrics
    ]
    names = sorted({category for arm in arms for category in arm.categories})
    categories = {
        metric.title: [
            Row(each, metric, [Cell(arm.categories.get(each, {}).get(metric.name)) for arm in arms])
            for each in names
        ]
        for metric in metrics[:LEADING]
        if names
    }
    return Section(name, suite.prompts, [arm.pictures for arm in arms], rows, categories, strips)
