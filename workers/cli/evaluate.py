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
