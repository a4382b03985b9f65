"""`ppv evaluate`: how good a stage is, beside others."""

from pathlib import Path
from typing import Annotated

import typer

from workers.cli import options
from workers.cli.evaluate_human import human

evaluate = typer.Typer(help="How good a stage is, beside others.", no_args_is_help=True)
evaluate.command()(human)


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


@evaluate.command()
def models(
    arms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARM...",
            help="base, ensemble (each category by its own specialist), a model of the store, a "
            "folder or a hub id. LABEL=ARM calls it so, LABEL=A+B measures two models together, as "
            "of one recipe and two seeds, and ARM:short draws the suite's base prompts instead of "
            "its detailed ones.",
        ),
    ] = None,
    suites: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="SUITE",
            help="hands, unseen, hard or general, miniature-hands and so on, or a .txt or .jsonl "
            "file; may be repeated. By default all four.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=64, help="Of each prompt.")] = 2,
    clip_score: Annotated[
        str, typer.Option(metavar="MODEL", help="Measure CLIPScore by this CLIP: folder or hub id.")
    ] = "",
    preference: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Measure preference by this CLIP, such as yuvalkirstain/PickScore_v1.",
        ),
    ] = "",
    image_reward: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="Measure ImageReward by what python -m pipeline.verifier.image_reward wrote.",
        ),
    ] = "",
    reference: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measure FID and KID to the pictures of this folder."),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="The CLIP by which these are compared; by default the miniature's judge.",
        ),
    ] = "",
    out: Annotated[Path, typer.Option(help="Where models.html, .png and .json go.")] = Path(
        "ppv-out/models"
    ),
    resamples: Annotated[
        int, typer.Option(min=100, max=100_000, help="Of the prompts, for the intervals.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 20_260_401,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """Compare models on the same prompts and seeds.

    Every arm draws the suites through the queues, as a run of its own, so that any number of
    machines may help; the same call again draws what is missing and measures anew. The first arm is
    what the others are compared with. Ends with 1 if something could not be drawn or measured.
    """
    import json

    from rich.console import Console

    from pipeline.config import MINIATURE
    from pipeline.evaluation.suites import load_suite
    from workers.cli import evaluate_models as work
    from workers.cli.model_tables import tables
    from workers.cli.session import session
    from workers.settings import settings

    ours = "miniature-" if settings().proposer.model == MINIATURE else ""
    names = suites or [f"{ours}{name}" for name in ("hands", "unseen", "hard", "general")]
    chosen = [load_suite(name) for name in dict.fromkeys(names)]
    with session() as here:
        evaluated = work.evaluate_models(
            here,
            work.arms_of(arms or [], here.settings, here.store),
            chosen,
            work.Options(
                images_per_prompt=images,
                clip_score=clip_score,
                preference=preference,
                image_reward=image_reward,
                reference=reference,
                features=features,
                resamples=resamples,
                seed=seed,
            ),
        )
        paths = work.write(evaluated, out)
    if as_json:
        print(json.dumps(work.as_json(evaluated)))
    else:
        console = Console()
        for table in tables(evaluated.suites):
            console.print(table)
        for name, why in evaluated.skipped.items():
            console.print(f"skipped: {name}: {why}", markup=False, highlight=False)
        for note in evaluated.notes:
            console.print(f"note: {note}", markup=False, highlight=False)
        print(*(f"{kind:<5} {path}" for kind, path in paths.items()), sep="\n")
    if not evaluated.complete:
        raise typer.Exit(1)


@evaluate.command()
def verifier(
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Labels that it has not learned from: a JSONL file, or a set in the store; may be "
            "repeated."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--verifier", metavar="MODEL", help="A folder or hub id; by default verifier.model."
        ),
    ] = None,
    number: Annotated[
        int, typer.Option("--count", min=20, help="Labelled pictures, at most.")
    ] = 400,
    out: Annotated[
        Path, typer.Option(help="Where robustness.html, robustness.json and ROBUSTNESS.md go.")
    ] = Path("ppv-out/verifier"),
    into_card: Annotated[
        bool,
        typer.Option(
            "--into-card",
            help="Put the figures into the verifier's folder, and what it cannot tell into its "
            "README.md.",
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the choice of pictures, of noise and of edits.")
    ] = 20_260_501,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """Try a verifier on transformed pictures and edited prompts, and say what it cannot tell.

    Pictures that people labelled are cropped, blurred, mirrored, covered and so on in growing
    strength, and their prompts get another colour, object, hand or number of hands. Second opinions
    that are configured are measured on the same labels.
    """
    from rich.console import Console

    from pipeline.errors import InputError
    from pipeline.taxonomy import load_taxonomy
    from workers.cli import evaluate_verifier as work
    from workers.cli.label_sources import label_sources
    from workers.settings import settings

    if not labels:
        raise InputError("give --labels FILE or --labels SET: pictures that people have labelled")
    here = settings()
    config = here.verifier.model_copy(update={"model": model} if model else {})
    card = work.card_folder(config.model) if into_card else None
    with label_sources(labels, here.state_dir) as sources:
        taxonomy = load_taxonomy(here.prompter.taxonomy)
        evaluated = work.evaluate_verifier(sources, taxonomy, config, here.endpoint, number, seed)
    paths = work.write(evaluated, out, card)
    if as_json:
        print(evaluated.report.model_dump_json())
        return
    console = Console()
    for table in work.tables(evaluated.report):
        console.print(table)
    print(
        "What it cannot tell:", *evaluated.report.limits or ["nothing that was found"], sep="\n  "
    )
    print(*(f"{kind:<5} {path}" for kind, path in paths.items()), sep="\n")
