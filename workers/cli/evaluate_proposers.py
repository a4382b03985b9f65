"""What `ppv evaluate proposers` does: draws by every proposer, as a run, and measures the run."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import typer
from rich import box
from rich.progress import track
from rich.table import Table
from rich.text import Text

from pipeline.config import Run
from pipeline.errors import InputError
from pipeline.evaluation.proposers import (
    SPECIALISTS,
    Cell,
    Drawings,
    Evaluation,
    Paired,
    own_specialists,
)
from pipeline.miniature.truth import Truth
from pipeline.types import Record
from storage.objects import ObjectStore
from storage.progress import Progress, Tally, records
from storage.runs import RunFolder
from workers import dispatch
from workers.cli.ground_truth import judge_of, with_truth
from workers.cli.session import Session
from workers.cli.show import console
from workers.cli.work import list_failures, see_through
from workers.inputs import Format, read_bases, run_name_of
from workers.pages.charts import draw_heat_maps, share
from workers.pages.proposers import (
    ALL,
    MINUS,
    Against,
    Measure,
    Samples,
    against_base,
    columns,
    heat_maps,
    interval,
    measures,
    points,
    points_interval,
    ratio_interval,
    write_proposers_page,
)
from workers.pages.wording import count, visible
from workers.registry import card_of

_NOTHING = "-"


@dataclass(frozen=True)
class Evaluated:
    """A run's figures, what is to be known of them, and pictures to look at."""

    run: Run
    evaluation: Evaluation
    notes: list[str]
    samples: Samples


def run_name_for(file: str) -> str:
    """That of the file, marked, so that `ppv run` of the same file stays another run."""
    return f"{run_name_of(file)[:54]}-proposers"


# Drawing


def draw(here: Session, file: str, name: str, format: Format | None) -> RunFolder:
    """Have every prompt of the file drawn by every proposer, as far as that is not done yet.

    The route must be "all" by now. Raises InputError, before anything is kept, if there is one
    proposer only. Exits with 1 if the run is cancelled, or if everything failed.
    """
    bases = read_bases(file, format)
    check_comparable(dispatch.new_run(here.settings, name, here.store))
    folder = dispatch.open_run(here.store, here.broker, here.settings, name)
    _, tally = see_through(here, folder, bases)
    if here.broker.is_cancelled(folder.name):
        console.print(f"run {folder.name} was cancelled; `ppv resume {folder.name}` goes on")
        raise typer.Exit(1)
    if not tally.judged and list_failed(folder):
        raise typer.Exit(1)
    return folder


def check_comparable(run: Run) -> None:
    """Raises InputError for a run that only one proposer draws."""
    if len(run.proposers) < 2:
        raise InputError(
            f"run {run.name!r} has one proposer, {run.proposers[0].title!r}, and nothing to compare"
            " it with: train specialists (ppv train proposer) or add some (ppv models add), then "
            "ppv evaluate proposers FILE"
        )


# Measuring


def evaluate_run(folder: RunFolder, resamples: int, seed: int) -> Evaluated:
    """What the records of a run come to, with the ground truth if its world is the miniature's.

    Raises InputError for a run that is not there, that one proposer draws, or without records.
    """
    run = folder.read()
    check_comparable(run)
    seen, unknown = seen_texts(folder.store, run)
    tally = Progress(folder).update()
    if not tally.judged:
        raise InputError(
            f"run {run.name!r} has no judged pictures yet: see `ppv status {run.name}`"
        )
    categories = list(run.taxonomy.categories)
    drawings = Drawings(run.proposers, categories, run.proposer.specialists, seen)
    samples = Samples()
    judged = with_truth(records(folder), folder, judge_of(run))
    for record, its_truth in _watched(judged, tally.judged):
        if drawings.add(record, its_truth):
            samples.add(record, its_truth)
    evaluation = drawings.figures(resamples, seed)
    notes = list(_notes(run, evaluation, tally, unknown))
    return Evaluated(run, evaluation, notes, samples)


def _watched(
    judged: Iterator[tuple[Record, Truth | None]], total: int
) -> Iterator[tuple[Record, Truth | None]]:
    """With a bar on a terminal, and a line before it all in a pipe."""
    if not console.is_terminal:
        console.print(f"measuring {count(total)} pictures")
    yield from track(
        judged, "measure", total, console=console, transient=True, disable=not console.is_terminal
    )


def seen_texts(store: ObjectStore, run: Run) -> tuple[set[str], list[str]]:
    """The prompts that the run's specialists were trained on, with and without the rare token.

    And the names of the specialists whose cards say nothing of that.
    """
    texts: set[str] = set()
    unknown = []
    for adapter in (ref.adapter for ref in run.proposers if ref.adapter):
        card = card_of(adapter, store)
        prompts = card.get("prompts")
        if not isinstance(prompts, list):
            unknown.append(adapter.name)
            continue
        config = card.get("config")
        token = adapter.token or (config.get("token") if isinstance(config, dict) else "")
        for prompt in map(str, prompts):
            bare = [word for word in prompt.split() if word != token]
            texts |= {prompt, " ".join(bare)}
    return texts, unknown


def _notes(run: Run, evaluation: Evaluation, tally: Tally, unknown: Sequence[str]) -> Iterator[str]:
    """What the figures leave out."""
    if evaluation.seen_prompts:
        yield (
            f"left out, since a specialist was trained on them: {_many(evaluation.seen_prompts)}, "
            f"{_many(evaluation.seen_pictures, 'picture')}"
        )
    if unknown:
        yield (
            f"nobody knows which prompts {', '.join(unknown)} had in training: some of these may "
            "be among them"
        )
    if evaluation.incomplete:
        yield (
            "no part of the paired differences, for want of a picture by some proposer: "
            f"{count(evaluation.incomplete)} of {count(evaluation.incomplete + evaluation.pairs)} "
            "prompts and seeds"
        )
    if tally.failed:
        yield f"{_many(tally.failed, 'proposal')} failed: see `ppv report {run.name}`"
    if tally.missing:
        yield f"missing: {_many(tally.missing, 'proposal')}; `ppv resume {run.name}` goes on"
    own = own_specialists(run.proposers, evaluation.categories, run.proposer.specialists)
    if lacking := [name for name in evaluation.categories if name not in own]:
        yield f"no specialist of {', '.join(lacking)}: there the base stands in for it"


def _many(number: int, what: str = "prompt") -> str:
    return f"{count(number)} {what}{'' if number == 1 else 's'}"


# What is written and shown


def write(evaluated: Evaluated, folder: RunFolder, out: Path) -> dict[str, Path]:
    """The page, the figures and the heat maps, in this folder; their paths by what they are."""
    run, evaluation = evaluated.run, evaluated.evaluation
    paths = {kind: out / f"proposers.{kind}" for kind in ("html", "json", "png")}
    write_proposers_page(
        run,
        evaluation,
        evaluated.samples,
        lambda record: folder.read_image(record.id),
        evaluated.notes,
        paths["html"],
    )
    line = (
        f"run {run.name}: {count(evaluation.pictures)} pictures of {count(evaluation.prompts)} "
        "prompts; outlined: a specialist in its own category"
    )
    draw_heat_maps("Proposers compared", line, heat_maps(evaluation), paths["png"])
    paths["json"].write_text(json.dumps(as_json(evaluated), indent=1) + "\n", "utf-8")
    return paths


def as_json(evaluated: Evaluated) -> Mapping[str, object]:
    """What programs may read."""
    return {
        "run": evaluated.run.name,
        "thresholds": evaluated.run.thresholds.model_dump(),
        "notes": evaluated.notes,
        **asdict(evaluated.evaluation),
    }


def tables(evaluation: Evaluation) -> Iterator[Table]:
    """Proposers by category, one table a measure, and the differences from the base."""
    for measure in measures(evaluation):
        yield _by_category(evaluation, f"{measure.name}, in %", partial(_share, measure))
    yield _by_category(
        evaluation, "Scores by the verifier, means of fidelity and alignment", _scores
    )
    for field, by in (("paired_truth", "by ground truth"), ("paired", "by the verifier")):
        if lines := against_base(evaluation, field):
            yield _differences(lines, f"Faulty hands on the same prompts and seeds, {by}")


def _by_category(
    evaluation: Evaluation, title: str, words: Callable[[Cell], str]
) -> Table:  # fmt: skip
    """A row a proposer, a column a category."""
    table = _table(title)
    table.add_column("", no_wrap=True)
    for name in (*evaluation.categories, ALL):
        table.add_column(Text(visible(name)), justify="right", overflow="fold")
    for row in evaluation.rows:
        if row.kind == "specialists":
            table.add_section()
        cells = [words(cell) for _, cell in columns(evaluation, row)]
        table.add_row(Text(visible(row.label)), *cells)
    return table


def _differences(lines: Sequence[Against], title: str) -> Table:
    table = _table(title)
    for name in ("category", "drawn by"):
        table.add_column(name, overflow="fold")
    for name in ("pairs", "base", "these", "points", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        if line.category == ALL and line.label == SPECIALISTS:
            table.add_section()
        words = [Text(visible(line.category)), Text(visible(line.label))]
        table.add_row(*words, *_against(line.paired))
    return table


def _table(title: str) -> Table:
    """Narrow: a terminal has 80 columns."""
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def _share(measure: Measure, cell: Cell) -> str:
    found = measure.of(cell)
    if found is None:
        return _NOTHING
    return f"{share(found.share)}\n{interval(found.low, found.high)}".replace("%", "")


def _scores(cell: Cell) -> str:
    if cell.fidelity is None or cell.alignment is None:
        return _NOTHING
    return f"{cell.fidelity:.2f}\n{cell.alignment:.2f}"


def _against(paired: Paired) -> Iterator[str]:
    yield count(paired.pairs)
    yield share(paired.base)
    yield share(paired.faulty)
    yield f"{points(paired.difference)}\n{points_interval(paired)}".replace(MINUS, "-")
    if paired.ratio is None:
        yield _NOTHING
    else:
        yield f"{paired.ratio:.2f}\n{ratio_interval(paired)}".rstrip()


def list_failed(folder: RunFolder) -> bool:
    """Says on standard error what failed, if something did."""
    if next(folder.failed_ids(), None) is None:
        return False
    list_failures(folder, f"ppv resume {folder.name} --failed")
    return True
