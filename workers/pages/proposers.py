"""The page of a comparison of proposers: heat maps, differences, intervals and pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Run
from pipeline.evaluation.bootstrap import FEWEST_PROMPTS
from pipeline.evaluation.proposers import (
    Cell,
    Evaluation,
    Paired,
    Row,
    Share,
)
from pipeline.miniature.truth import Truth
from pipeline.types import Record
from storage.objects import ObjectNotFound
from workers.pages.atomic import replacing
from workers.pages.charts import DARK_HEAT, HEAT, HeatMap, share
from workers.pages.rendering import content_security_policy, environment, inlined
from workers.pages.report import ImageOf, data_uri
from workers.pages.wording import visible

ALL = "all"
"""The column of every category together."""

PROMPTS = 6  # of a category, whose pictures are kept
PICTURES = 600  # on one page, and a prompt of each category in any case
ACROSS = 12  # pictures of one prompt; then only the base's and some specialists' are shown
PROMPT_CHARACTERS = 600  # of each text from elsewhere

MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"


# The pictures


@dataclass(frozen=True)
class Sample:
    """One picture, with its ground truth where that is known."""

    record: Record
    truth: Truth | None


class Samples:
    """A few prompts of each category, and what every proposer drew of them from one seed.

    Those with the smallest ids, which are hashes: no picture is there for its looks, and the choice
    is the same in whatever order the records come.
    """

    def __init__(self, prompts: int = PROMPTS) -> None:
        self._prompts = prompts
        self._kept: dict[str, dict[str, list[Sample]]] = {}  # by category and prompt

    def add(self, record: Record, truth: Truth | None = None) -> None:
        prompt, seed = record.proposal.prompt, record.proposal.seed
        kept = self._kept.setdefault(prompt.category, {})
        if prompt.id not in kept and len(kept) == self._prompts:
            if prompt.id > max(kept):
                return
            del kept[max(kept)]
        samples = kept.setdefault(prompt.id, [])
        if samples and seed != (first := samples[0].record.proposal.seed):
            if seed > first:
                return
            samples.clear()
        samples.append(Sample(record, truth))

    def by_category(self) -> dict[str, list[list[Sample]]]:
        return {
            category: [samples for _, samples in sorted(kept.items())]
            for category, kept in self._kept.items()
        }


@dataclass(frozen=True)
class Tile:
    """A place in the grid; its picture is fetched when the page comes to it."""

    label: str
    own: bool  # whether it is the specialist of the prompt's category
    sample: Sample | None  # None: it was not drawn
    image_of: ImageOf

    def picture(self) -> str | None:
        """A data: URI, or None if the store has no such picture any more, or a broken one."""
        try:
            return data_uri(self.image_of(self.sample.record)) if self.sample else None
        except ObjectNotFound:
            return None


@dataclass(frozen=True)
class Strip:
    """One prompt and seed, by every proposer."""

    text: str
    seed: int
    tiles: list[Tile]


def _gallery(
    run: Run, evaluation: Evaluation, samples: Samples, image_of: ImageOf
) -> list[tuple[str, list[Strip]]]:
    """By category, in the taxonomy's order."""
    kept = samples.by_category()
    rows = [row for row in evaluation.rows if row.kind in ("base", "specialist")]
    refs = sorted(run.proposers, key=lambda ref: ref.adapter is not None)  # as the rows stand
    across = min(len(rows), ACROSS)
    each = max(1, PICTURES // max(1, len(kept) * across))
    gallery = []
    for category in evaluation.categories:
        shown = sorted(
            zip(rows, refs, strict=True),
            key=lambda pair: (pair[0].kind != "base", category not in pair[0].own),
        )[:across]
        strips = []
        for some in kept.get(category, ())[:each]:
            proposal = some[0].record.proposal
            drawn = {sample.record.proposal.proposer: sample for sample in some}
            tiles = [
                Tile(row.label, category in row.own, drawn.get(ref), image_of)
                for row, ref in shown
            ]  # fmt: skip
            strips.append(Strip(proposal.prompt.text, proposal.seed, tiles))
        if strips:
            gallery.append((category, strips))
    return gallery


# The figures


@dataclass(frozen=True)
class Measure:
    """A share of a cell, as people call it."""

    field: str
    name: str
    line: str

    def of(self, cell: Cell) -> Share | None:
        found: Share | None = getattr(cell, self.field)
        return found

    def share(self, cell: Cell) -> float | None:
        found = self.of(cell)
        return found.share if found else None


HAND_RIGHT = Measure("hand_right", "Hand right, by the verifier", "fidelity reaches its threshold")
ALIGNED = Measure(
    "aligned", "As the prompt says, by the verifier", "alignment reaches its threshold"
)
FAULTLESS = Measure("faultless", "Hand faultless, by ground truth", "no fault of the hand")
AS_ASKED = Measure("as_asked", "All as asked, by ground truth", "everything that the prompt names")


def measures(evaluation: Evaluation) -> tuple[Measure, ...]:
    """Those that there are figures of."""
    truth = (FAULTLESS, AS_ASKED) if evaluation.judged_by_truth else ()
    return (*truth, HAND_RIGHT, ALIGNED)


def columns(evaluation: Evaluation, row: Row) -> list[tuple[str, Cell]]:
    """A row's cells in order, and what all of them come to."""
    return [*((name, row.cells[name]) for name in evaluation.categories), (ALL, row.all)]


def heat_maps(evaluation: Evaluation) -> list[HeatMap]:
    """One of each measure: proposers by category."""
    own = {
        (y, x)
        for y, row in enumerate(evaluation.rows)
        for x, name in enumerate(evaluation.categories)
        if name in row.own
    }
    return [
        HeatMap(
            name=measure.name,
            line=measure.line,
            rows=[row.label for row in evaluation.rows],
            columns=[*evaluation.categories, ALL],
            values=[
                [measure.share(cell) for _, cell in columns(evaluation, row)]
                for row in evaluation.rows
            ],
            outlined=frozenset(own),
        )
        for measure in measures(evaluation)
    ]


@dataclass(frozen=True)
class Against:
    """A line of the comparison with the base."""

    category: str
    label: str
    paired: Paired


def against_base(evaluation: Evaluation, field: str) -> list[Against]:
    """Every category by its own specialist, then all categories by each way of taking proposers.

    field: "paired" by the verifier, "paired_truth" by ground truth.
    """
    lines = [
        Against(name, row.label, paired)
        for name in evaluation.categories
        for row in evaluation.rows
        if name in row.own and (paired := getattr(row.cells[name], field))
    ]
    lines += [
        Against(ALL, row.label, paired)
        for row in evaluation.rows
        if row.kind in ("specialists", "ensemble") and (paired := getattr(row.all, field))
    ]
    return lines


def headline(evaluation: Evaluation) -> Paired | None:
    """The specialists, each in its own category, against the base: by ground truth if there is."""
    field = "paired_truth" if evaluation.judged_by_truth else "paired"
    lines = [line.paired for line in against_base(evaluation, field) if line.category == ALL]
    return lines[0] if lines and lines[0].ratio is not None else None


# Words


def interval(low: float, high: float) -> str:
    """Of shares: "88-95%" with an en dash."""
    return f"{share(low).removesuffix('%')}{NOTHING}{share(high)}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    rounded = round(100 * value, 1)
    sign = MINUS if rounded < 0 else "+" if rounded > 0 else ""
    return f"{sign}{abs(rounded):.1f}"


def points_interval(paired: Paired) -> str:
    if paired.low is None or paired.high is None:
        return "too few prompts"
    return f"{points(paired.low)} to {points(paired.high)}"


def ratio_interval(paired: Paired) -> str:
    if paired.ratio_low is None or paired.ratio_high is None:
        return ""
    return f"{paired.ratio_low:.2f} to {paired.ratio_high:.2f}"


# The page


def write_proposers_page(
    run: Run,
    evaluation: Evaluation,
    samples: Samples,
    image_of: ImageOf,
    notes: Sequence[str],
    to: Path,
) -> None:
    """Write the page of an evaluation to the file `to`, whole or not at all.

    notes: what else is to be known of the figures, a sentence each.
    """
    style = inlined("report.css", "proposers.css") + "".join(_heat_rules())
    templates = environment(PROMPT_CHARACTERS)
    templates.filters |= {"share": share, "points": points}
    templates.globals |= {
        "interval": interval,
        "points_interval": points_interval,
        "ratio_interval": ratio_interval,
    }
    page = templates.get_template("proposers.html.j2").stream(
        run=run,
        evaluation=evaluation,
        maps=heat_maps(evaluation),
        headline=headline(evaluation),
        by_truth=against_base(evaluation, "paired_truth"),
        by_verifier=against_base(evaluation, "paired"),
        figures=list(_figures(evaluation)),
        gallery=_gallery(run, evaluation, samples, image_of),
        notes=[visible(note) for note in notes],
        fewest=FEWEST_PROMPTS,
        style=style,
        policy=content_security_policy(style),
    )
    page.enable_buffering()
    with replacing(to) as file:
        for part in page:
            file.write(part.encode())


def _heat_rules() -> Iterator[str]:
    """The colours of the heat maps, the same as in the picture."""
    for place, color in enumerate(HEAT):
        ink = "#ffffff" if place >= DARK_HEAT else "#1f1e1b"
        yield f".heat-{place} {{ background: {color}; color: {ink}; }}\n"


def _figures(evaluation: Evaluation) -> Iterator[tuple[str, list[tuple[Row, Cell]]]]:
    """A table for each column of the maps, that of all categories first."""
    yield "All categories", [(row, row.all) for row in evaluation.rows]
    for name in evaluation.categories:
        yield name, [(row, row.cells[name]) for row in evaluation.rows]
