"""The tables of a comparison of models, as a terminal shows them: metrics by arms."""

from collections.abc import Iterator, Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.evaluation.models import (
    Against,
    Estimate,
    Metric,
    SuiteFigures,
    Wins,
    clearly,
    shown_metrics,
)
from workers.pages.models import between, difference, figure, gap
from workers.pages.proposers import MINUS
from workers.pages.wording import count

_COLOURS = {"better": "green", "worse": "red", "": "dim"}


def tables(suites: Mapping[str, SuiteFigures]) -> Iterator[Table]:
    """One of each suite; what stands below a figure is its difference from the first arm's, and how
    often a picture is better than that arm's."""
    for name, suite in suites.items():
        table = Table(
            title=f"{name}: {count(suite.prompts)} prompts",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column("")
        for label in suite.arms:
            table.add_column(Text(label), justify="right", overflow="fold")
        first = next(iter(suite.arms))
        for metric in shown_metrics(suite):
            cells = (
                _cell(
                    metric,
                    arm.metrics.get(metric.name),
                    arm.against.get(first, {}).get(metric.name),
                    arm.wins.get(metric.name),
                )
                for arm in suite.arms.values()
            )
            table.add_row(Text(metric.title), *cells)
        yield table


def _cell(
    metric: Metric, found: Estimate | None, against: Against | None, wins: Wins | None
) -> Text:
    """A figure with its interval; the difference with its own; wins."""
    if found is None:
        return Text("-")
    text = Text(_plain(figure(metric, found.value), between(metric, found.low, found.high)))
    if against:
        words = _plain(difference(metric, against), gap(metric, against))
        text.append(f"\n{words}", _COLOURS[clearly(metric, against)])
    if wins:
        text.append(f"\nwins {wins.share:.0%}", "dim")
    return text


def _plain(words: str, interval: str) -> str:
    return (f"{words} ({interval})" if interval else words).replace(MINUS, "-")
