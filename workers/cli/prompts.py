"""`ppv prompts`: the first stage alone, to look at before anything is drawn."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from workers.cli import options, prompt_stats


class FileFirst(TyperGroup):
    """`ppv prompts FILE` is `ppv prompts make FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


prompts = typer.Typer(
    cls=FileFirst,
    help="Make the detailed prompts of a file, or see what a run's are like.\n\n"
    "`ppv prompts FILE` stands for `ppv prompts make FILE`.",
    no_args_is_help=True,
)


@prompts.command()
def make(
    file: options.File,
    name: options.RunName = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Estimate requests, tokens and dollars; nothing is sent."),
    ] = False,
    batch: Annotated[
        bool,
        typer.Option(
            "--batch", help="Through the provider's batches endpoint: cheaper, within a day."
        ),
    ] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="Try again what failed before, and pay for it.")
    ] = False,
    json: options.Json = False,
    format: options.InputFormat = None,
    set_: options.Set = None,
) -> None:
    """Make the detailed prompts of FILE and keep them in the run, without drawing.

    `ppv run FILE --run NAME` draws them later and pays for none again. The same call again goes
    on where the last one stopped.
    """
    from workers.cli import describe, estimate
    from workers.inputs import read_bases, run_name_of

    run = run_name_of(file) if name is None else name
    bases = read_bases(file, format)
    if dry_run:
        estimate.estimate(bases, run, json=json)
    else:
        describe.describe(bases, run, batch=batch, failed=failed, json=json)


prompts.command("stats")(prompt_stats.stats)
