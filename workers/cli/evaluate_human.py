"""`ppv evaluate human`: people say, by keys, which of two pictures is better."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli import options
from workers.cli.serving import note, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

    from pipeline.evaluation.human import Estimate, Result
    from workers.comparing.work import Comparing


def _study_name(name: str) -> str:
    from storage.runs import check_run_name

    return check_run_name(name)


def human(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY", help="What is asked of everybody, by name.", callback=_study_name
        ),
    ],
    models: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Make the study: its arms are those of a models.json that ppv evaluate models "
            "wrote, and the strengths are told against the first.",
        ),
    ] = None,
    suites: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="SUITE",
            help="With --models: only prompts of this suite, as for ppv evaluate models; may be "
            "repeated. By default all that the arms have in common.",
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="With --models: how many are compared; by default 100."
        ),
    ] = None,
    check_share: Annotated[
        float | None,
        typer.Option(
            "--checks",
            min=0.0,
            max=0.5,
            help="With --models: how many of all are attention checks, one picture being of "
            "another prompt; by default 0.1.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="With --models: of the choice of pairs; by default 0.")
    ] = None,
    annotator: options.Annotator = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 0,
    result: Annotated[
        bool, typer.Option("--result", help="Say what came of it so far, and end.")
    ] = False,
    everybody: Annotated[
        bool,
        typer.Option(
            "--everybody",
            help="With --result: count those too who failed the checks or leaned to one side.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="With --result: where human.html and human.json go; ppv-out/STUDY by default."
        ),
    ] = None,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """A local page on which to say which of two pictures is better.

    Both are of one prompt and seed, left and right by chance, and nobody is
    told who drew them. Three questions: which is drawn better, which shows
    better what the text says, which is better all in all. Ties are allowed.

        ppv evaluate models base ensemble
        ppv evaluate human hands --models ppv-out/models/models.json
        ppv evaluate human hands --annotator bo
        ppv evaluate human hands --result

    The call with --models freezes the study in the store. From then on its
    name is enough, for as many people as like, on machines of their own.

    --result gives strengths by Bradley and Terry with Davidson's ties, wins,
    and Krippendorff's alpha. Who passed fewer than three in four attention
    checks, or chose one side far too often, is left out, and it says so.
    """
    from pipeline.errors import InputError
    from workers.cli.session import open_for_reading
    from workers.comparing.work import Comparing, arms_in, make_study
    from workers.people.names import login_name
    from workers.settings import settings

    making = (suites, pairs, check_share, seed)
    if models is None and any(value is not None for value in making):
        raise InputError(
            "--prompts, --pairs, --checks and --seed say how a study is made: give --models FILE"
        )
    if not result and (everybody or out or as_json):
        raise InputError("--everybody, --out and --json belong to --result")
    with open_for_reading() as store:
        if models:
            made = make_study(
                store,
                study,
                arms_in(models),
                suites or [],
                pairs=100 if pairs is None else pairs,
                check_share=0.1 if check_share is None else check_share,
                seed=seed or 0,
            )
            for each in made.notes:
                note(each)
        work = Comparing(store, study, settings().state_dir / "studies")
        if result:
            _show(work, everybody, out or Path("ppv-out") / study, as_json)
        else:
            _serve(work, annotator or login_name(), host, port)


def _serve(work: "Comparing", annotator: str, host: str, port: int) -> None:
    from workers.comparing.server import create_app
    from workers.people.server import PageServer

    with closing(PageServer(host, port)) as server, work.open(annotator) as opened:
        app = create_app(
            opened.desk,
            work.read_image,
            title=work.name,
            annotator=annotator,
            trouble=lambda: opened.keeper.trouble,
        )
        progress = opened.desk.progress
        print(f"{progress.total:,} pairs, {progress.whole:,} compared by {annotator}")
        serve(server, app, opened.journal, opened.keeper)


def _show(work: "Comparing", everybody: bool, out: Path, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    from rich.console import Console

    from workers.pages.atomic import replacing
    from workers.pages.human import write_human_page

    result = work.result(everybody)
    notes = list(_notes(work, result))
    request = work.study.request.model_dump(mode="json")
    found = {"study": work.name, "request": request, **asdict(result), "notes": notes}
    paths = {kind: out / f"human.{kind}" for kind in ("html", "json")}
    write_human_page(work.name, work.study, result, notes, paths["html"])
    with replacing(paths["json"]) as file:
        file.write(f"{json.dumps(found, indent=1)}\n".encode())
    if as_json:
        print(json.dumps(found))
        return
    console = Console()
    for table in _tables(result):
        console.print(table)
    for each in notes:
        console.print(f"note: {each}", markup=False, highlight=False)
    print(*(f"{kind:<5} {path}" for kind, path in paths.items()), sep="\n")


def _notes(work: "Comparing", result: "Result") -> "Iterator[str]":
    """What the figures leave out, or should perhaps have left out."""
    for name, it in result.annotators.items():
        if it.why_not and name in result.counted:
            yield f"{name} is counted, though they {it.why_not}"
        elif it.why_not:
            yield f"{name} is left out: they {it.why_not}; --everybody counts them"
    if work.study.alike:
        yield f"{work.study.alike:,} pairs are one and the same picture, and nobody was asked"
    yield from work.study.notes


def _tables(result: "Result") -> "Iterator[Table]":
    """One a question, and one of the annotators."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from pipeline.choices import ASKED, QUESTIONS
    from workers.pages.charts import share
    from workers.pages.human import agreed, strength
    from workers.pages.wording import count

    def new(title: str, first: str, *columns: str) -> Table:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(first, no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right")
        return table

    for question, it in result.questions.items():
        title = f"{ASKED[question]} {count(it.answers)} answers. {agreed(it.agreement)}"
        table = new(title, "", "strength", "wins, a tie half", "won", "tied", "lost")
        for label, arm in it.arms.items():
            wins = arm.wins
            counts = [count(n) for n in (wins.won, wins.tied, wins.lost)] if wins else ["-"] * 3
            table.add_row(
                Text(label),
                _cell(arm.strength, strength),
                _cell(wins.share if wins else None, share),
                *counts,
            )
        yield table
    sides = [f"left, {question}" for question in QUESTIONS]
    table = new("", "annotator", "pairs", "checks passed", *sides, "counted")
    for name, who in result.annotators.items():
        table.add_row(
            name,
            count(who.pairs),
            f"{who.passed} of {who.checks}",
            *(f"{who.left[q]} of {who.left[q] + who.right[q]}" for q in QUESTIONS),
            "yes" if name in result.counted else "no",
        )
    yield table


def _cell(estimate: "Estimate | None", words: "Callable[[float], str]") -> str:
    from workers.pages.human import between

    if estimate is None:
        return "-"
    return "\n".join(filter(None, (words(estimate.value), between(estimate, words))))
