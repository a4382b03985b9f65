"""`ppv evaluate`: how good a stage is, beside others."""

from pathlib import Path
from typing import Annotated

import typer

from workers.cli import options

evaluate = typer.Typer(help="How good a stage is, beside others.", no_args_is_help=True)


def _run_names(names: list[str] | None) -> list[str]:
    """Wrong names, and one that stands there twice, end the command before anything is read."""
    from pipeline.errors import InputError
    from storage.runs import check_run_name

    checked = [check_run_name(name) for name in names or ()]
    for name in checked:
        if checked.count(name) > 1:
            raise InputError(f"run {name!r} is given twice: give runs of different prompters")
    return checked


@evaluate.command()
def prompts(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...", help="The runs, each of another prompter.", callback=_run_names
        ),
    ] = None,
    human: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='People\'s prompts as one more arm: .jsonl lines {"base": ..., "text": ...}, '
            'if you like with "category" and "attributes".',
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="A picture of the comparison: a .png or .svg file.")
    ] = None,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """Compare prompters on the base prompts that they share."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from pipeline.errors import InputError
    from workers.cli.evaluate_prompts import compare, read_human, table
    from workers.cli.session import open_for_reading
    from workers.pages.charts import check_ending, draw_comparison
    from workers.pages.wording import count

    if to:
        check_ending(to)
    if not runs or len(runs) + (human is not None) < 2:
        raise InputError(
            "a comparison needs two arms or more: give two runs, or a run and --human FILE"
        )
    written = read_human(human) if human else None
    with open_for_reading() as store:
        comparison = compare(store, runs, written)
    line = f"{count(comparison.common)} base prompts that all of them have"
    if to:
        draw_comparison("Prompters compared", line, comparison.arms, to)
    if as_json:
        arms = [
            asdict(arm) | {"usage": arm.usage and arm.usage.model_dump()} for arm in comparison.arms
        ]
        print(json.dumps({"common": comparison.common, "notes": comparison.notes, "arms": arms}))
        return
    console = Console()
    console.print(table(comparison))
    for note in comparison.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    if to:
        print(to)


def _check_run_name(name: str | None) -> str | None:
    from storage.runs import check_run_name

    return None if name is None else check_run_name(name)


@evaluate.command()
def proposers(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE",
            help="Base prompts, as for ppv run: every proposer draws them, from the same seeds.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--run",
            help="The run's name; by default that of the file, and -proposers.",
            callback=_check_run_name,
        ),
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            "--of",
            metavar="RUN",
            help="A run that is there, instead of FILE; nothing is drawn.",
            callback=_check_run_name,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where proposers.html, .json and .png go; ppv-out/RUN by default."),
    ] = None,
    format: options.InputFormat = None,
    resamples: Annotated[
        int, typer.Option(min=100, max=100_000, help="Of the prompts, for the paired intervals.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 20_260_401,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """Compare the base, its specialists and the ensemble on the same prompts and seeds.

    Every prompt of FILE is drawn by every proposer, through the queues like any run; the same call
    again draws what is missing and measures anew.
    """
    import json

    from rich.console import Console

    from pipeline.errors import InputError
    from storage.runs import RunFolder
    from workers.cli import evaluate_proposers as work
    from workers.cli.session import open_for_reading, session
    from workers.settings import override

    if (file is None) == (of is None) or (of is not None and name is not None):
        raise InputError("give a FILE of base prompts to draw, or --of RUN to measure a run")
    failed = False
    if file is None:
        assert of is not None
        with open_for_reading() as store:
            folder = RunFolder(store, of)
            evaluated = work.evaluate_run(folder, resamples, seed)
            paths = work.write(evaluated, folder, out or Path("ppv-out") / folder.name)
    else:
        override("proposer.route=all")
        with session() as here:
            folder = work.draw(here, file, name or work.run_name_for(file), format)
            evaluated = work.evaluate_run(folder, resamples, seed)
            paths = work.write(evaluated, folder, out or Path("ppv-out") / folder.name)
            failed = work.list_failed(folder)
    if as_json:
        print(json.dumps(work.as_json(evaluated)))
    else:
        console = Console()
        for table in work.tables(evaluated.evaluation):
            console.print(table)
        for note in evaluated.notes:
            console.print(f"note: {note}", markup=False, highlight=False)
        print(*(f"{kind:<5} {path}" for kind, path in paths.items()), sep="\n")
    if failed:
        raise typer.Exit(1)
