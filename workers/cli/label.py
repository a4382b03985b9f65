"""`ppv label`: people say which pictures are right."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli import options
from workers.cli.serving import note, serve

if TYPE_CHECKING:
    from workers.labelling.work import Work


def _set_name(name: str | None) -> str | None:
    from storage.runs import check_run_name

    return None if name is None else check_run_name(name)


def label(
    run: options.Run,
    set_name: Annotated[
        str | None,
        typer.Option(
            help="Whose labels they are: several runs may share a set. By default the run's name.",
            callback=_set_name,
        ),
    ] = None,
    annotator: options.Annotator = None,
    random_share: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="How many come by chance; the others come as the verifier is unsure of them.",
        ),
    ] = 0.3,
    overlap: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="How many of the pictures that others labelled come too, for the agreement.",
        ),
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the order.")] = 0,
    host: options.Host = "127.0.0.1",
    port: options.Port = 0,
    export_to: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="Write the set's labels as JSONL and end."),
    ] = None,
    import_from: Annotated[
        Path | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="Read labels and end: JSONL as --export "
            "writes it, Label Studio's JSON export, or Argilla's records as JSON.",
        ),
    ] = None,
    set_: options.Set = None,
) -> None:
    """A local page on which to say, by keys, whether hand and picture are right."""
    from pipeline.errors import InputError
    from storage.runs import RunFolder
    from workers.cli.session import open_for_reading
    from workers.labelling.work import Work
    from workers.people.names import login_name
    from workers.settings import settings

    if export_to and import_from:
        raise InputError("--export or --import: one at a time")
    with open_for_reading() as store:
        folder = RunFolder(store, run)
        folder.read()
        work = Work(folder, set_name or run, settings().state_dir / "labels")
        if export_to:
            count = work.export(export_to)
            print(f"{export_to}: {count} labels of set {work.set_name}")
        elif import_from:
            taken = work.take(import_from)
            new = ", ".join(f"{n} by {name}" for name, n in sorted(taken.new.items()))
            print(f"labels added to set {work.set_name}: {new or 'none new'}")
            if taken.without_picture:
                note(f"of these labels, {taken.without_picture} have no picture in run {run}")
        else:
            _serve(work, annotator or login_name(), random_share, overlap, seed, host, port)


def _serve(
    work: "Work",
    annotator: str,
    random_share: float,
    overlap: float,
    seed: int,
    host: str,
    port: int,
) -> None:
    from workers.labelling.server import create_app
    from workers.people.server import PageServer

    with (
        closing(PageServer(host, port)) as server,
        work.open(annotator, random_share=random_share, overlap=overlap, seed=seed) as opened,
    ):
        desk = opened.desk

        def refresh() -> None:
            desk.others = work.opinions_but(annotator)

        app = create_app(
            desk,
            work.read_image,
            title=work.set_name,
            annotator=annotator,
            trouble=lambda: opened.keeper.trouble,
            refresh=refresh,
        )
        progress = desk.progress
        print(f"{progress.total:,} pictures, {progress.whole:,} labelled by {annotator}")
        serve(server, app, opened.journal, opened.keeper)
