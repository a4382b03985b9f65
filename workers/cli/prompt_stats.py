"""`ppv prompts stats`: what a run's detailed prompts cover, how long they are, what they cost."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.evaluation.prompts import Cell, PromptMetrics, Reach
    from pipeline.types import Expansion, Usage

MOST_ROWS = 12  # of one attribute's table


def stats(
    run: options.Run,
    to: Annotated[
        Path | None, typer.Option(help="A picture of the coverage: a .png or .svg file.")
    ] = None,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """The prompts' shares of categories and attributes beside the wanted ones, lengths and cost."""
    from rich.console import Console

    from pipeline.errors import InputError
    from pipeline.evaluation.prompts import PromptMetrics
    from storage.runs import RunFolder
    from storage.spending import spending
    from workers.cli.session import open_for_reading
    from workers.pages.charts import check_ending, draw_coverage
    from workers.pages.wording import count

    if to:
        check_ending(to)
    with open_for_reading() as store:
        folder = RunFolder(store, run)
        taxonomy = folder.read().taxonomy
        metrics, totals = PromptMetrics(taxonomy), _Totals()

        def look(expansion: "Expansion") -> None:
            metrics.add(expansion.prompts)
            totals.add(expansion)

        usage = spending(folder, look)
    if not metrics.prompts:
        raise InputError(f"run {run!r} has no detailed prompts yet: see `ppv status {run}`")
    coverage = metrics.coverage.reach()
    made = f"{count(metrics.prompts)} prompts of {count(metrics.base_prompts)} base prompts"
    if to:
        line = f"{made}, taxonomy {taxonomy.name}; bars: reached, marks: wanted"
        draw_coverage(f"What the prompts of run {run} cover", line, coverage, to)
    if as_json:
        print(json.dumps({"run": run} | _as_json(metrics, coverage, totals, usage)))
        return
    console = Console()
    for attribute, reach in coverage.items():
        console.print(_table(attribute, reach))
        if note := _note(reach):
            console.print(note, highlight=False, markup=False)
        console.print()
    for line in [made, *_lines(metrics, totals, usage)]:
        console.print(line, highlight=False, markup=False)
    if to:
        print(to)


@dataclass
class _Totals:
    """What a run's expansions say beside their prompts."""

    dropped: int = 0  # texts that nearly repeated others, and were replaced
    short: int = 0  # base prompts that have fewer prompts than were asked for

    def add(self, expansion: "Expansion") -> None:
        self.dropped += len(expansion.dropped)
        self.short += bool(expansion.shortfall)


def _as_json(
    metrics: "PromptMetrics", coverage: "dict[str, Reach]", totals: _Totals, usage: "Usage"
) -> dict[str, object]:
    words = metrics.words.spread()
    return {
        "base_prompts": metrics.base_prompts,
        "prompts": metrics.prompts,
        "dropped": totals.dropped,
        "short": totals.short,
        "repeats": metrics.repeats,
        "over_budget": dict(metrics.over_budget),
        "cut": metrics.cut,
        "words": asdict(words) if words else None,
        "tokens": {stage: asdict(spread) for stage, spread in metrics.token_spreads().items()},
        "usage": usage.model_dump(),
        "coverage": {attribute: asdict(reach) for attribute, reach in coverage.items()},
    }


def _shown(reach: "Reach") -> "dict[str, Cell]":
    """The most distant values, in the taxonomy's order."""
    by_gap = sorted(reach.values.items(), key=lambda row: -row[1].gap)
    kept = {value for value, _ in by_gap[:MOST_ROWS]}
    return {value: cell for value, cell in reach.values.items() if value in kept}


def _table(attribute: str, reach: "Reach") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from workers.pages.charts import distance, share, shorten
    from workers.pages.wording import count, visible

    title = f"{attribute}: {distance(reach)}"
    table = Table(title=title, title_justify="left", min_width=len(title))
    for column in ("value", "wanted", "reached", "count"):
        table.add_column(column, justify="left" if column == "value" else "right")
    for value, cell in _shown(reach).items():
        name = Text(shorten(visible(value), 60))  # no markup, whatever it looks like
        table.add_row(name, share(cell.wanted), share(cell.reached), count(cell.count))
    return table


def _note(reach: "Reach") -> str:
    """What an attribute's table leaves out."""
    from workers.pages.charts import shorten
    from workers.pages.wording import count, visible

    notes = []
    if reach.never_reached:
        notes.append(f"{count(reach.never_reached)} never reached")
    if left_out := len(reach.values) - len(_shown(reach)):
        notes.append(f"{count(left_out)} nearer ones left out")
    if reach.others:
        named = list(reach.others.items())[:3]
        first = ", ".join(f"{shorten(name, 40)} ({count(number)})" for name, number in named)
        rest = len(reach.others) - len(named)
        notes.append(f"other: {first}" + (f" and {count(rest)} more" if rest else ""))
    return visible("; ".join(notes))


def _lines(metrics: "PromptMetrics", totals: _Totals, usage: "Usage") -> list[str]:
    """The totals, a line a subject."""
    from workers.pages.wording import count, dollars, percent

    lines = [
        f"near-duplicates: {count(totals.dropped)} dropped, {count(metrics.repeats)} kept",
        f"cut to fit: {count(metrics.cut)} ({percent(metrics.cut, metrics.prompts)})",
    ]
    if totals.short:
        lines.append(f"base prompts with fewer prompts than asked for: {count(totals.short)}")
    for stage, spread in metrics.token_spreads().items():
        over, measured = metrics.over_budget[stage], len(metrics.tokens[stage])
        lines.append(
            f"tokens, {stage}: mean {spread.mean:.1f}, median {spread.median:.4g}, 95% at most "
            f"{spread.p95:.4g}, longest {spread.max}, limit {metrics.limits[stage]}; "
            f"over it: {count(over)} ({percent(over, measured)})"
        )
    lines.append(
        f"spent: {count(usage.requests)} requests, {count(usage.input_tokens)} tokens in, "
        f"{count(usage.output_tokens)} out, {dollars(usage.usd)}"
    )
    return lines
