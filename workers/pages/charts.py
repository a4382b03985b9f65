"""Pictures of figures, PNG or SVG by the file's ending, the same bytes for the same figures.

Everything is placed in inches from the upper left corner, so that a bar is as high among three as
among forty. The font is the one that comes with matplotlib.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.evaluation.prompts import Acceptance, Arm, Cell, Reach, Spread
from workers.pages.atomic import replacing
from workers.pages.wording import count, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")

CARD, EDGE, INK, QUIET = "#ffffff", "#dedad1", "#1f1e1b", "#66625a"  # the strip's
GREEN, ALARM = "#2c7a52", "#a8432f"  # likewise
BAR = "#8fbda3"  # GREEN, paler: ticks and numbers stand out against it
HEAT = (
    "#f5edd3", "#dee2c8", "#c6d7bc", "#afcbb1", "#97c0a6", "#7fb59b", "#689c8b", "#4a7d75",
    "#3b6c6c", "#26555c", "#0f3f4d",
)  # fmt: skip
"""From least to most. Each is darker than the one before, whatever colours an eye can tell."""
DARK_HEAT = 7  # from this one on, words are light
ARMS = (GREEN, "#c07a1f", "#34659c", "#a8432f", "#76508f", "#4c8f93", "#b5628b", "#7b7a35")
DPI = 160

TITLE_PT, HEAD_PT, TEXT_PT, SMALL_PT = 15, 10.5, 8.5, 7.5
MARGIN_IN, GAP_IN = 0.4, 0.5
HEAD_IN = 0.46  # a panel's name and its line below
TITLE_IN, TITLE_LINE_IN = 0.42, 0.24
TITLE_LETTER_IN = 0.13  # on average

ROW_IN = 0.2  # of the coverage: one value
BELOW_IN = 0.3  # between one attribute and the next
VALUE_IN, BARS_IN, NUMBER_IN = 2.45, 1.9, 0.5  # the name, its bar, its number
MOST_ROWS = 40  # of one attribute
VALUE_CHARACTERS = 36

ARM_IN = 0.38  # of the comparison: a name and the bar below it
PANEL_IN = 2.55
PANELS_ACROSS = 4
ARM_CHARACTERS = 34

CELL_IN, CELL_HIGH_IN = 0.62, 0.32  # of a heat map
MAPS_ACROSS_IN = 15.0  # two maps stand side by side if they are no wider than this together
LABEL_LETTER_IN = 0.085  # on average
UPRIGHT_CHARACTERS = 8  # longer names of columns are tilted
TILT_DEG = 40
SQUARE_IN, AXIS_IN = 2.9, 0.25  # of a reliability diagram, and the words below it
LEAST_SPAN = 0.2  # of a colour scale: chance must not look like a gulf


def check_ending(to: Path) -> None:
    """Raises InputError for a file whose ending is that of no picture which is drawn here."""
    if to.suffix.lower() not in ENDINGS:
        raise InputError(f"{str(to)!r}: a picture's name ends with {' or '.join(ENDINGS)}")


def draw_coverage(title: str, line: str, coverage: Mapping[str, Reach], to: Path) -> None:
    """What was reached of each attribute's values, as bars, and what was wanted, as marks.

    line: what stands below the title. Raises InputError for the wrong ending, or where the file
    cannot be written.
    """
    check_ending(to)
    panels = [_rows(name, reach) for name, reach in coverage.items()]
    columns = _balanced([HEAD_IN + len(p.rows) * ROW_IN + BELOW_IN for p in panels], 2)
    width = VALUE_IN + BARS_IN + NUMBER_IN
    with _drawing():
        from matplotlib.figure import Figure

        page = _Page(
            Figure(facecolor=CARD),
            width_in=2 * MARGIN_IN + len(columns) * width + (len(columns) - 1) * GAP_IN,
            height_in=2 * MARGIN_IN + TITLE_IN + TITLE_LINE_IN + max(map(_height, columns)),
        )
        page.title(title, line)
        for across, column in enumerate(columns):
            left = MARGIN_IN + across * (width + GAP_IN)
            for index, top in column.tops:
                _draw_rows(page, panels[index], left, top + MARGIN_IN + TITLE_IN + TITLE_LINE_IN)
        page.save(to)


@dataclass(frozen=True)
class _Rows:
    """One attribute's panel."""

    name: str
    line: str
    rows: list[tuple[str, Cell]]


def _rows(name: str, reach: Reach) -> _Rows:
    """Of many values the most distant ones, in the taxonomy's order."""
    rows = list(reach.values.items())
    if len(rows) > MOST_ROWS:
        by_gap = sorted(rows, key=lambda row: -row[1].gap)
        kept = {value for value, _ in by_gap[:MOST_ROWS]}
        rows = [row for row in rows if row[0] in kept]
    line = distance(reach)
    if reach.never_reached:
        wanted = sum(cell.wanted > 0 for cell in reach.values.values())
        line += f" \N{MIDDLE DOT} {count(reach.never_reached)} of {count(wanted)} never reached"
    if left_out := len(reach.values) - len(rows):
        line += f" \N{MIDDLE DOT} {count(left_out)} nearer ones left out"
    return _Rows(name, line, rows)


def _draw_rows(page: "_Page", panel: _Rows, left: float, top: float) -> None:
    page.head(panel.name, panel.line, left, top)
    top += HEAD_IN
    axes = page.axes(left + VALUE_IN, top, BARS_IN, len(panel.rows) * ROW_IN, len(panel.rows))
    most = max((max(cell.wanted, cell.reached) for _, cell in panel.rows), default=0) or 1
    axes.set_xlim(0, most * 1.02)
    for y, (value, cell) in enumerate(panel.rows):
        missed = cell.count == 0 and cell.wanted > 0
        axes.barh(y, cell.reached, height=0.62, color=BAR)
        if cell.wanted:
            axes.vlines(cell.wanted, y - 0.4, y + 0.4, color=INK, linewidth=1.5)
        middle = top + (y + 0.5) * ROW_IN
        name, color = shorten(value, VALUE_CHARACTERS), ALARM if missed else INK
        page.text(left + VALUE_IN - 0.1, middle, name, TEXT_PT, color, ha="right", va="center")
        number = share(cell.reached)
        right = left + VALUE_IN + BARS_IN + NUMBER_IN
        page.text(right, middle, number, TEXT_PT, color, ha="right", va="center")


@dataclass(frozen=True)
class _Column:
    tops: list[tuple[int, float]]  # a panel's index, and where it begins
    height: float


def _height(column: _Column) -> float:
    return column.height - BELOW_IN


def _balanced(heights: Sequence[float], most: int) -> list[_Column]:
    """The panels in their order, each in the column that is shortest so far."""
    ends = [0.0] * min(most, len(heights))
    tops: list[list[tuple[int, float]]] = [[] for _ in ends]
    for index, height in enumerate(heights):
        column = ends.index(min(ends))
        tops[column].append((index, ends[column]))
        ends[column] += height
    return [_Column(*column) for column in zip(tops, ends, strict=True)]


# The comparison of arms


@dataclass(frozen=True)
class _Value:
    """One arm's bar: its length, its number in words, and perhaps a range around it."""

    value: float | None
    words: str
    low: float | None = None
    high: float | None = None
    limit: int | None = None


NOTHING = _Value(None, "\N{EN DASH}")


@dataclass(frozen=True)
class _Panel:
    name: str
    line: str
    values: list[_Value]
    most: float | None = None  # where the scale ends; None: at the largest


def draw_comparison(title: str, line: str, arms: Sequence[Arm], to: Path) -> None:
    """Each figure of the arms as a small panel of bars, in one colour per arm.

    line: what stands below the title. What no arm has gets no panel. Raises InputError for the
    wrong ending, or where the file cannot be written.
    """
    check_ending(to)
    panels = [panel for panel in _panels(arms) if any(v.value is not None for v in panel.values)]
    across = min(PANELS_ACROSS, max(len(panels), 1))
    down = -(-len(panels) // across)
    height = HEAD_IN + len(arms) * ARM_IN
    with _drawing():
        from matplotlib.figure import Figure

        page = _Page(
            Figure(facecolor=CARD),
            width_in=2 * MARGIN_IN + across * PANEL_IN + (across - 1) * GAP_IN,
            height_in=2 * MARGIN_IN + TITLE_IN + TITLE_LINE_IN + down * (height + GAP_IN) - GAP_IN,
        )
        page.title(title, line)
        for index, panel in enumerate(panels):
            left = MARGIN_IN + index % across * (PANEL_IN + GAP_IN)
            top = MARGIN_IN + TITLE_IN + TITLE_LINE_IN + index // across * (height + GAP_IN)
            _draw_panel(page, panel, [arm.name for arm in arms], left, top)
        page.save(to)


def _panels(arms: Sequence[Arm]) -> Iterator[_Panel]:
    """In the order in which they are drawn."""
    values = [_length(arm.words) for arm in arms]
    yield _Panel("words", "mean; line to the 95th percentile", values)
    for stage in sorted({stage for arm in arms for stage in arm.tokens}):
        values = [_length(arm.tokens.get(stage), arm.limits.get(stage)) for arm in arms]
        limits = {value.limit for value in values if value.limit}
        line = "mean, 95th percentile; mark: limit"
        if len(limits) == 1:
            line += f" of {count(*limits)}"
        yield _Panel(f"tokens, {stage}", line, values)
    for n in ("1", "2", "3"):
        values = [_number(arm.distinct[n]) for arm in arms]
        texts = count(min(arm.sampled_texts for arm in arms))
        yield _Panel(f"distinct-{n}", f"of {texts} texts; more is more varied", values)
    values = [_number(arm.self_bleu) for arm in arms]
    texts = count(min(arm.self_bleu_texts for arm in arms))
    yield _Panel("self-BLEU", f"of {texts} texts; less is more varied", values, most=1)
    values = [_number(arm.within_base) for arm in arms]
    yield _Panel("distance within a base prompt", "of trigrams; more is more varied", values, 1)
    values = [_number(arm.distance) for arm in arms]
    yield _Panel("distance to the target", "mean of the attributes; 0: reached", values, most=1)
    for stage in sorted({stage for arm in arms for stage in arm.over_budget}):
        values = [_share(arm.over_budget.get(stage)) for arm in arms]
        yield _Panel(f"over budget, {stage}", "share of prompts", values, most=1)
    values = [_share(arm.cut) for arm in arms]
    yield _Panel("cut to fit", "share of prompts", values, most=1)
    values = [_share(arm.repeats) for arm in arms]
    yield _Panel("near-duplicates kept", "share of prompts", values, most=1)
    values = [_acceptance(arm.acceptance) for arm in arms]
    yield _Panel("acceptance", "share of proposals; line: 95% interval", values, most=1)


def _length(spread: Spread | None, limit: int | None = None) -> _Value:
    if spread is None:
        return NOTHING
    return _Value(spread.mean, f"{spread.mean:.0f}", high=spread.p95, limit=limit)


def _number(value: float | None) -> _Value:
    return NOTHING if value is None else _Value(value, f"{value:.2f}")


def _share(value: float | None) -> _Value:
    return NOTHING if value is None else _Value(value, share(value))


def _acceptance(found: Acceptance | None) -> _Value:
    return _Value(found.share, share(found.share), found.low, found.high) if found else NOTHING


def _draw_panel(
    page: "_Page", panel: _Panel, names: Sequence[str], left: float, top: float
) -> None:
    page.head(panel.name, panel.line, left, top)
    top += HEAD_IN
    axes = page.axes(left, top, PANEL_IN, len(names) * ARM_IN, len(names))
    ends = [end for v in panel.values for end in (v.value, v.high, v.limit) if end is not None]
    axes.set_xlim(0, (panel.most or max(ends) or 1) * 1.01)
    for y, (name, value) in enumerate(zip(names, panel.values, strict=True)):
        color = ARMS[y % len(ARMS)]
        words_at = top + y * ARM_IN + 0.2
        page.text(left, words_at, shorten(name, ARM_CHARACTERS), SMALL_PT, color, va="bottom")
        page.text(left + PANEL_IN, words_at, value.words, TEXT_PT, INK, ha="right", va="bottom")
        bar = y + 0.2  # of rows that are one high: the name stands in the upper half
        axes.barh(bar, axes.get_xlim()[1], height=0.2, color=EDGE, alpha=0.45)
        if value.value is None:
            continue
        axes.barh(bar, value.value, height=0.2, color=color)
        if value.high is not None:
            low = value.value if value.low is None else value.low
            axes.hlines(bar, low, value.high, color=INK, linewidth=1.1)
        if value.limit is not None:
            axes.vlines(value.limit, bar - 0.18, bar + 0.18, color=INK, linewidth=1.5)


# Heat maps


@dataclass(frozen=True)
class HeatMap:
    """Shares by row and column; None: nothing is known. outlined: (row, column) of some cells."""

    name: str
    line: str
    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]  # in [0, 1]
    outlined: frozenset[tuple[int, int]] = frozenset()

    @property
    def scale(self) -> tuple[float, float]:
        """Which shares the first and the last colour stand for: whole tenths around all values."""
        known = [value for row in self.values for value in row if value is not None]
        low = math.floor(10 * min(known, default=0.0)) / 10
        high = math.ceil(10 * max(known, default=1.0)) / 10
        if high - low < LEAST_SPAN:
            low = max(0.0, min(low, high - LEAST_SPAN))
            high = max(high, low + LEAST_SPAN)
        return low, high

    def heat(self, value: float) -> int:
        """The place of the value's colour in HEAT."""
        low, high = self.scale
        return round((len(HEAT) - 1) * (value - low) / (high - low))

    @property
    def reading(self) -> str:
        """How to read it, in words."""
        low, high = self.scale
        return f"{self.line}; darker is more, from {share(low)} to {share(high)}"


def draw_heat_maps(title: str, line: str, maps: Sequence[HeatMap], to: Path) -> None:
    """Each map with its values in the cells.

    line: what stands below the title. Raises InputError for the wrong ending, or where the file
    cannot be written.
    """
    check_ending(to)
    sizes = [_map_size(each) for each in maps]
    widest = max((width for width, _ in sizes), default=PANEL_IN)
    across = 2 if len(maps) > 1 and 2 * widest + GAP_IN <= MAPS_ACROSS_IN else 1
    lines = [sizes[start : start + across] for start in range(0, len(sizes), across)]
    heights = [max(height for _, height in each) for each in lines]
    with _drawing():
        from matplotlib.figure import Figure

        page = _Page(
            Figure(facecolor=CARD),
            width_in=2 * MARGIN_IN + across * widest + (across - 1) * GAP_IN,
            height_in=2 * MARGIN_IN + TITLE_IN + TITLE_LINE_IN + sum(heights)
            + GAP_IN * max(0, len(heights) - 1),
        )  # fmt: skip
        page.title(title, line)
        for index, each in enumerate(maps):
            above = heights[: index // across]
            left = MARGIN_IN + index % across * (widest + GAP_IN)
            top = MARGIN_IN + TITLE_IN + TITLE_LINE_IN + sum(above) + GAP_IN * len(above)
            _draw_map(page, each, left, top)
        page.save(to)


def _map_size(heat: HeatMap) -> tuple[float, float]:
    """Width and height in inches."""
    width = _names_in(heat) + len(heat.columns) * CELL_IN + _overhang_in(heat)
    words = LABEL_LETTER_IN * max(len(heat.name), SMALL_PT / TEXT_PT * len(heat.reading))
    return max(width, words), HEAD_IN + _labels_in(heat) + len(heat.rows) * CELL_HIGH_IN


def _names_in(heat: HeatMap) -> float:
    """How wide the names of the rows are."""
    longest = max((min(len(name), ARM_CHARACTERS) for name in heat.rows), default=0)
    return 0.15 + longest * LABEL_LETTER_IN


def _tilted(heat: HeatMap) -> bool:
    return max(map(len, heat.columns), default=0) > UPRIGHT_CHARACTERS


def _labels_in(heat: HeatMap) -> float:
    """How high the names of the columns are."""
    if not _tilted(heat):
        return 0.24
    longest = max(min(len(name), ARM_CHARACTERS) for name in heat.columns)
    return 0.2 + longest * LABEL_LETTER_IN * 0.9 * math.sin(math.radians(TILT_DEG))


def _overhang_in(heat: HeatMap) -> float:
    """How far the last column's tilted name reaches beyond it."""
    return (_labels_in(heat) - 0.2) if _tilted(heat) else 0.0


def _draw_map(page: "_Page", heat: HeatMap, left: float, top: float) -> None:
    page.head(heat.name, heat.reading, left, top)
    left, top = left + _names_in(heat), top + HEAD_IN + _labels_in(heat)
    rows, columns = len(heat.rows), len(heat.columns)
    tilt, ha, into = (TILT_DEG, "left", 0.35) if _tilted(heat) else (0, "center", 0.5)
    for x, name in enumerate(heat.columns):
        at = left + (x + into) * CELL_IN
        words = shorten(name, ARM_CHARACTERS)
        page.text(at, top - 0.06, words, TEXT_PT, QUIET, ha=ha, va="bottom", rotation=tilt)
    axes = page.axes(left, top, columns * CELL_IN, rows * CELL_HIGH_IN, rows)
    axes.set_xlim(-0.5, columns - 0.5)
    for y, (name, values) in enumerate(zip(heat.rows, heat.values, strict=True)):
        middle = top + (y + 0.5) * CELL_HIGH_IN
        page.text(left - 0.1, middle, shorten(name, ARM_CHARACTERS), TEXT_PT, INK, ha="right")
        for x, value in enumerate(values):
            warmth = None if value is None else heat.heat(value)
            color = EDGE if warmth is None else HEAT[warmth]
            axes.barh(y, 0.96, height=0.92, left=x - 0.48, color=color)
            words = "\N{EN DASH}" if value is None else share(value)
            ink = CARD if warmth is not None and warmth >= DARK_HEAT else INK
            page.text(left + (x + 0.5) * CELL_IN, middle, words, TEXT_PT, ink, ha="center")
    for y, x in sorted(heat.outlined):
        for inset, color, width in ((0.0, INK, 2.0), (0.04, CARD, 1.0)):  # to be seen on any heat
            axes.barh(
                y, 0.96 - 2 * inset, height=0.92 - 4 * inset, left=x - 0.48 + inset, fill=False,
                edgecolor=color, linewidth=width, clip_on=False,
            )  # fmt: skip


# Reliability


@dataclass(frozen=True)
class Dot:
    """One bin of a reliability diagram: the scores' mean, the share that is right, how many."""

    score: float
    share: float
    n: int


@dataclass(frozen=True)
class Diagram:
    """How far one score can be believed."""

    name: str
    line: str
    dots: list[Dot]


def draw_reliability(title: str, line: str, diagrams: Sequence[Diagram], to: Path) -> None:
    """Each score's bins as dots, the larger the more pictures, beside the line of a perfect score.

    line: what stands below the title. Raises InputError for the wrong ending, or where the file
    cannot be written.
    """
    check_ending(to)
    with _drawing():
        from matplotlib.figure import Figure

        page = _Page(
            Figure(facecolor=CARD),
            width_in=2 * MARGIN_IN + len(diagrams) * SQUARE_IN
            + max(0, len(diagrams) - 1) * 2 * GAP_IN,
            height_in=2 * MARGIN_IN + TITLE_IN + TITLE_LINE_IN + HEAD_IN + SQUARE_IN + AXIS_IN,
        )  # fmt: skip
        page.title(title, line)
        for index, diagram in enumerate(diagrams):
            left = MARGIN_IN + index * (SQUARE_IN + 2 * GAP_IN)
            _draw_diagram(page, diagram, left, MARGIN_IN + TITLE_IN + TITLE_LINE_IN)
        page.save(to)


def _draw_diagram(page: "_Page", diagram: Diagram, left: float, top: float) -> None:
    page.head(diagram.name, diagram.line, left, top)
    top += HEAD_IN
    axes = page.axes(left, top, SQUARE_IN, SQUARE_IN, 1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.plot([0, 1, 1, 0, 0], [0, 0, 1, 1, 0], color=EDGE, linewidth=1.2, clip_on=False)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
    most = max((dot.n for dot in diagram.dots), default=1)
    for dot in diagram.dots:
        axes.plot([dot.score] * 2, [dot.score, dot.share], color=ALARM, linewidth=1)
        area = 18 + 160 * dot.n / most
        axes.scatter(dot.score, dot.share, s=area, color=GREEN, clip_on=False, zorder=3)
    below = top + SQUARE_IN + 0.14
    for at, words, ha in ((0.0, "0", "left"), (0.5, "score", "center"), (1.0, "1", "right")):
        page.text(left + at * SQUARE_IN, below, words, SMALL_PT, QUIET, ha=ha)
    middle = top + SQUARE_IN / 2
    page.text(left - 0.08, middle, "share that is right", SMALL_PT, QUIET, ha="center", rotation=90)


# Paper and pen


class _Page:
    """A figure on which things are placed in inches from the upper left corner."""

    def __init__(self, figure: "Figure", width_in: float, height_in: float) -> None:
        self._figure = figure
        self._size = width_in, height_in
        figure.set_size_inches(width_in, height_in)

    def title(self, title: str, line: str) -> None:
        title = shorten(title, int((self._size[0] - 2 * MARGIN_IN) / TITLE_LETTER_IN))
        self.text(MARGIN_IN, MARGIN_IN + 0.08, title, TITLE_PT, INK, va="center")
        self.text(MARGIN_IN, MARGIN_IN + TITLE_IN - 0.06, line, TEXT_PT, QUIET, va="center")

    def head(self, name: str, line: str, left: float, top: float) -> None:
        self.text(left, top + 0.16, name, HEAD_PT, INK, va="bottom", weight="bold")
        self.text(left, top + 0.34, line, SMALL_PT, QUIET, va="bottom")

    def text(
        self, x: float, y: float, text: str, size_pt: float, color: str, ha: str = "left",
        va: str = "center", weight: str = "normal", rotation: float = 0,
    ) -> None:  # fmt: skip
        width, height = self._size
        self._figure.text(
            x / width, 1 - y / height, visible(text), fontsize=size_pt, color=color, ha=ha, va=va,
            fontweight=weight, rotation=rotation, rotation_mode="anchor",
        )  # fmt: skip

    def axes(self, left: float, top: float, width_in: float, height_in: float, rows: int) -> "Axes":
        """Without a frame or labels; its rows are 1 high, and the first is the upper one."""
        width, height = self._size
        box = (left / width, 1 - (top + height_in) / height, width_in / width, height_in / height)
        axes = self._figure.add_axes(box)
        axes.set_axis_off()
        axes.set_ylim(rows - 0.5, -0.5)
        return axes

    def save(self, to: Path) -> None:
        """Without a date or a version, so that the same figures are the same file."""
        ending = to.suffix.lower().removeprefix(".")
        metadata = {"Software": None} if ending == "png" else {"Date": None, "Creator": None}
        try:
            with replacing(to) as file:
                self._figure.savefig(file, format=ending, dpi=DPI, metadata=metadata)
        except OSError as error:
            raise InputError(f"{str(to)!r} cannot be written: {error.strerror}") from None


@contextmanager
def _drawing() -> Iterator[None]:
    """Settings under which figures are made and drawn."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # whatever the user has configured for other pictures
        matplotlib.rcParams["svg.hashsalt"] = "ppv"  # ids within the file are hashes
        matplotlib.rcParams["text.parse_math"] = False  # a name may hold dollar signs
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it becomes a box
        yield


def distance(reach: Reach) -> str:
    """To the wanted distribution, in words."""
    if reach.distance is None or reach.by_chance is None:
        return "no prompt says it"
    return f"distance {reach.distance:.2f} (random draws: {reach.by_chance:.2f})"


def shorten(name: str, characters: int) -> str:
    """Without its middle, if it is longer: names that begin alike often end apart."""
    if len(name) <= characters:
        return name
    end = characters // 2
    return f"{name[: characters - end - 1].rstrip()}…{name[-end:].lstrip()}"


def share(value: float) -> str:
    """In percent, with a decimal below ten; what is there at all never reads 0%."""
    if 0 < value < 0.001:
        return "<0.1%"
    return f"{value:.0%}" if value == 0 or value >= 0.0995 else f"{value:.1%}"
