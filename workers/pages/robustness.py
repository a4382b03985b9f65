"""The page of a verifier's robustness: what it cannot tell, curves, pictures and all figures."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from PIL import Image

from pipeline.evaluation.robustness import Curve, Level, Report, Tile
from pipeline.evaluation.robustness_card import RULES, capital
from pipeline.evaluation.verifier import HEADS
from pipeline.types import Verdict
from workers.pages.atomic import replacing
from workers.pages.charts import share
from workers.pages.proposers import interval
from workers.pages.rendering import content_security_policy, environment, inlined
from workers.pages.wording import score

PROMPT_CHARACTERS = 600  # of each text from elsewhere
THUMBNAIL_PX = 192
WIDTH, HEIGHT = 260, 120  # of a panel's plot, in SVG units
INSET = 14  # of its first and last point from its edges
LOW_AUC = 0.4  # where the axis of AUCs begins, unless some are lower


@dataclass(frozen=True)
class Value:
    """One point of a curve with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One series of a panel, ready to be drawn. color: a class of the style sheet."""

    name: str
    color: str
    points: str
    band: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """A small chart over the strengths. words: all that it shows, for those who cannot see it."""

    name: str
    low: float
    lines: list[Line]
    ticks: list[tuple[float, str, bool]]  # where, how called, whether it is dashed
    words: str


@dataclass(frozen=True)
class Trial:
    """One curve of the report with its panels and pictures."""

    curve: Curve
    places: list[tuple[float, str]]  # of the strengths on the axis
    panels: list[Panel]
    tiles: list[Tile]


@dataclass(frozen=True)
class EditRow:
    """One edit of the prompt in the table. words: the example's, each kept, taken out or put in."""

    curve: Curve
    level: Level
    words: list[tuple[str, str]]


def write_robustness_page(report: Report, examples: Mapping[str, Sequence[Tile]], to: Path) -> None:
    """Write the page to the file `to`, whole or not at all."""
    style = inlined("report.css", "proposers.css", "robustness.css")
    templates = environment(PROMPT_CHARACTERS)
    templates.filters |= {"share": share, "capital": capital, "picture": picture}
    templates.globals |= {"interval": interval}
    low = _lowest(report)
    page = templates.get_template("robustness.html.j2").render(
        report=report,
        benign=_trials(report, "benign", examples, low),
        destroying=_trials(report, "destroying", examples, low),
        edits=[
            EditRow(curve, curve.levels[0], _changes(examples.get(curve.name, ())))
            for curve in report.curves
            if curve.kind == "edit" and len(curve.levels) == 1
        ],
        growing=[
            trial for trial in _trials(report, "edit", examples, low) if len(trial.places) > 2
        ],
        changes=_changes_to,
        heads=HEADS,
        rules=RULES,
        width=WIDTH,
        height=HEIGHT,
        auc_x=lambda value: round(100 * (value - low) / (1 - low), 2),
        low=low,
        verdict=_verdict,
        style=style,
        policy=content_security_policy(style),
    )
    with replacing(to) as file:
        file.write(page.encode())


def picture(image: Image.Image) -> str:
    """A data: URI, without loss, of a large picture's thumbnail."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    data = io.BytesIO()
    small.save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def _verdict(verdict: Verdict) -> str:
    return f"fidelity {score(verdict.fidelity)}, alignment {score(verdict.alignment)}"


# Curves


def _lowest(report: Report) -> float:
    """Where the axis of AUCs begins, on the whole page."""
    every = [
        ranking.low
        for curve in report.curves
        for level in (curve.untouched, *curve.levels)
        for ranking in (*level.auc.values(), *level.told.values())
        if ranking.low is not None
    ]
    return LOW_AUC if min(every, default=1.0) >= LOW_AUC else 0.0


def _trials(
    report: Report, kind: str, examples: Mapping[str, Sequence[Tile]], low: float
) -> list[Trial]:
    return [
        Trial(
            curve,
            _places(curve),
            [_scores(curve), _accepted(curve), _aucs(curve, low)],
            list(examples.get(curve.name, ())),
        )
        for curve in report.curves
        if curve.kind == kind
    ]


def _levels(curve: Curve) -> list[Level]:
    return [curve.untouched, *curve.levels]


def _places(curve: Curve) -> list[tuple[float, str]]:
    """Strengths stand at equal distances, in their order."""
    step = (WIDTH - 2 * INSET) / len(curve.levels)
    return [(INSET + n * step, level.label) for n, level in enumerate(_levels(curve))]


def _scores(curve: Curve) -> Panel:
    def of(head: str) -> Callable[[Level], Value | None]:
        def value(level: Level) -> Value | None:
            mean = level.means[head]
            if mean.value is None or mean.low is None or mean.high is None:
                return None
            return Value(mean.value, mean.low, mean.high)

        return value

    series = [(head, head, of(head)) for head in HEADS]
    return _panel("Mean score of right pictures", curve, series, 0.0)


def _accepted(curve: Curve) -> Panel:
    def of(field: str) -> Callable[[Level], Value | None]:
        def value(level: Level) -> Value | None:
            found = getattr(level, field)
            return None if found.value is None else Value(found.value, found.low, found.high)

        return value

    series = [("of right ones", "right", of("accepted"))]
    series.append(("of wrong ones", "wrong", of("wrong_accepted")))
    return _panel("Share accepted", curve, series, 0.0)


def _aucs(curve: Curve, low: float) -> Panel:
    """Against the labels while they hold; of untouched against changed where they are lost."""

    def of(head: str, field: str) -> Callable[[Level], Value | None]:
        def value(level: Level) -> Value | None:
            found = getattr(level, field).get(head)
            if found is None or found.auc is None:
                return None
            return Value(found.auc, found.low, found.high)

        return value

    series = []
    for head in HEADS:
        lost = any(level.held[head] == "lost" for level in curve.levels)
        if lost:
            series.append((f"{head}, noticed", head, of(head, "told")))
        elif curve.levels[-1].held[head] == "kept":
            series.append((head, head, of(head, "auc")))
    return _panel("AUC", curve, series, low)


def _panel(
    name: str,
    curve: Curve,
    series: Sequence[tuple[str, str, Callable[[Level], Value | None]]],
    low: float,
) -> Panel:
    """series: name, colour, and the value at each strength. low: where the axis begins."""
    levels, places = _levels(curve), _places(curve)

    def height(value: float) -> float:
        return round(HEIGHT * (1 - (value - low) / (1 - low)), 1)

    lines, words = [], []
    for said, color, value_of in series:
        found = [
            (x, label, value)
            for level, (x, label) in zip(levels, places, strict=True)
            if (value := value_of(level))
        ]
        dots = [(round(x, 1), height(value.value)) for x, _, value in found]
        upper = [f"{x:.1f},{height(value.high)}" for x, _, value in found]
        lower = [f"{x:.1f},{height(value.low)}" for x, _, value in reversed(found)]
        points = " ".join(f"{x},{y}" for x, y in dots)
        lines.append(Line(said, color, points, " ".join([*upper, *lower]), dots))
        shown = ", ".join(f"{label} {value.value:.2f}" for _, label, value in found)
        words.append(f"{said}: {shown or 'nothing'}")
    ticks = [(height(low), f"{low:g}", False), (height(1), "1", False)]
    middle = 0.5 if low < 0.5 else (1 + low) / 2
    ticks.append((height(middle), f"{middle:g}", name == "AUC"))
    return Panel(name, low, lines, ticks, f"{name}. {'. '.join(words)}.")


# Edited prompts


def _changes(tiles: Sequence[Tile]) -> list[tuple[str, str]]:
    """The example's prompt word by word; empty without an example."""
    return _changes_to(tiles[0].text, tiles[1].text) if len(tiles) > 1 else []


def _changes_to(before: str, after: str) -> list[tuple[str, str]]:
    return list(_compared(before.split(), after.split()))


def _compared(before: list[str], after: list[str]) -> Iterator[tuple[str, str]]:
    """Runs of words: "kept", "out" of the first, "in" of the second."""
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            yield "kept", " ".join(before[a:b])
            continue
        if a < b:
            yield "out", " ".join(before[a:b])
        if c < d:
            yield "in", " ".join(after[c:d])
