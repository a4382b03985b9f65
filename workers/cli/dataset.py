"""`ppv dataset`: frozen datasets, from the accepted records of runs to the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli import options

if TYPE_CHECKING:
    from storage.datasets import Datasets, Manifest

dataset = typer.Typer(
    help="Datasets of accepted records: frozen, versioned, verifiable.", no_args_is_help=True
)

_SHOWN = 10  # ids and flaws that are listed
_KEPT = 1000  # of them in --json

Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.")]
Reference = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="The newest version by default.")
]


@dataset.command()
def build(
    name: Name,
    runs: Annotated[list[str], typer.Option(metavar="RUN", help="A run; may be repeated.")],
    per_category: Annotated[
        int | None, typer.Option(min=1, help="Pictures of each category at most.")
    ] = None,
    quota: Annotated[int | None, typer.Option(min=1, help="Pictures in all at most.")] = None,
    balance: Annotated[
        bool, typer.Option("--balance", help="Of every category as many as the smallest has.")
    ] = False,
    near_duplicates: Annotated[
        int,
        typer.Option(
            min=0,
            max=64,
            help="Pictures of one category and object whose perceptual hashes differ in so many "
            "bits of 432, or fewer, count as one.",
        ),
    ] = 24,
    keep_near_duplicates: Annotated[
        bool, typer.Option("--keep-near-duplicates", help="Compare no pictures.")
    ] = False,
    unverified: Annotated[
        bool,
        typer.Option(
            "--unverified", help="Rejected pictures too: a control for what verifying is worth."
        ),
    ] = False,
    split: Annotated[
        float, typer.Option(min=0.0, help="The share of base prompts that is for testing.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Another one chooses and splits otherwise.")] = 0,
    license_: Annotated[
        str, typer.Option("--license", help="An identifier of the Hugging Face hub.")
    ] = "other",
    title: Annotated[str, typer.Option(help="Of the card.")] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Write the version's files anew: it is damaged.")
    ] = False,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """Freeze the accepted records of runs as a version; the same input makes the same one."""
    from pipeline.errors import InputError
    from storage.datasets import Choice
    from storage.freezing import freeze
    from workers.cli.session import open_for_reading
    from workers.cli.show import console, counting
    from workers.settings import settings

    if per_category and quota:
        raise InputError("--per-category and --quota: give one of them")
    if split >= 1:
        raise InputError(f"--split {split:g}: it is a share, below 1")
    choice = Choice(
        verdicts="any" if unverified else "accepted",
        per_category=per_category,
        quota=quota,
        balance=balance,
        near_duplicates=None if keep_near_duplicates else near_duplicates,
        test_share=split,
        seed=seed,
    )
    with open_for_reading() as store, counting() as say:
        manifest, new = freeze(
            store,
            name,
            runs,
            choice,
            settings().state_dir,
            title=title,
            license=license_,
            again=again,
            say=say,
        )
    if as_json:
        _print_json({"new": new} | _summary(manifest))
        return
    console.print(_table_of(manifest))
    left = manifest.left_out
    console.print(
        f"left out: {left.near_duplicates} near duplicates, {left.surplus} beyond quota or "
        f"balance, {left.repeated} repeated"
    )
    if split and not manifest.pictures["test"]:
        console.print(
            f"no base prompt fell to the test split at {split:g}: take a larger --split, or "
            "another --seed"
        )
    without = [name for name, n in manifest.composition.categories.items() if not n.get("train")]
    if without:
        console.print(f"with no picture to train on: {', '.join(without)}")
    if not new:
        console.print("nothing has changed: this version was there already")
    print(f"dataset  {manifest.reference}")


@dataset.command("list")
def list_(as_json: options.Json = False, set_: options.Set = None) -> None:
    """Every dataset with its versions, the newest first."""
    from rich.console import Console
    from rich.table import Table

    with _datasets() as datasets:
        found = [each for name in datasets.names() for each in datasets.versions(name)]
    if as_json:
        _print_json([_summary(each) for each in found])
        return
    table = Table("dataset", "version", "train", "test", "categories", "MB", "made", "runs")
    for each in found:
        table.add_row(
            each.name,
            each.version,
            *(f"{each.pictures[split]:,}" for split in each.pictures),
            str(len(each.composition.categories)),
            f"{each.bytes / 1e6:.1f}",
            each.created_at[:10],
            ", ".join(run.run for run in each.runs),
        )
    Console(highlight=False).print(table)


@dataset.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="NAME@VERSION")],
    after: Annotated[str, typer.Argument(metavar="NAME@VERSION")],
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """What the second has that the first has not: records, and composition side by side."""
    from storage.datasets import changes

    ids: dict[str, list[str]] = {"added": [], "removed": [], "changed": []}
    counts = dict.fromkeys(ids, 0)
    with _datasets() as datasets:
        old, new = datasets.find(before), datasets.find(after)
        for change in changes(datasets.entries(old), datasets.entries(new)):
            counts[change.kind] += 1
            if len(ids[change.kind]) < _KEPT:
                ids[change.kind].append(change.id)
    if as_json:
        said = {kind: {"count": counts[kind], "ids": ids[kind]} for kind in ids}
        _print_json({"before": _summary(old), "after": _summary(new)} | said)
        return
    from rich.console import Console

    Console(highlight=False).print(_side_by_side(old, new))
    for kind, count in counts.items():
        print(f"{kind:8} {count:,}")
        for id in ids[kind][:_SHOWN]:
            print(f"  {id}")
        if count > _SHOWN:
            print(f"  ... and {count - _SHOWN:,} more; --json lists {_KEPT:,}")


@dataset.command()
def verify(reference: Reference, as_json: options.Json = False, set_: options.Set = None) -> None:
    """Every file and every picture against its hash, every picture decoded."""
    import sys
    from dataclasses import asdict

    from storage import datasets as frozen
    from workers.cli.show import counting

    with _datasets() as datasets, counting() as say:
        manifest = datasets.find(reference)
        files, pictures = iter(range(1, len(manifest.files) + 1)), [0]

        def saw(file: frozen.File) -> None:
            pictures[0] += file.pictures
            say("files", next(files), len(manifest.files))

        flaws = list(frozen.verify(datasets, manifest, saw))
    if as_json:
        _print_json(
            {
                "dataset": manifest.reference,
                "files": len(manifest.files),
                "pictures": pictures[0],
                "flaws": [asdict(flaw) for flaw in flaws],
            }
        )
    else:
        for flaw in flaws:
            which = f", {flaw.id}" if flaw.id else ""
            print(f"{flaw.file}{which}: {flaw.problem}", file=sys.stderr)
        said = f"{len(flaws)} flaws" if flaws else "as it was frozen"
        print(
            f"{manifest.reference}: {len(manifest.files)} files, {pictures[0]:,} pictures, {said}"
        )
        if flaws:
            print("ppv dataset build with --again writes them anew", file=sys.stderr)
    if flaws:
        raise typer.Exit(1)


@dataset.command()
def fetch(
    reference: Reference,
    to: Annotated[Path, typer.Option(help="The dataset's folder.")],
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """A version as a folder, which datasets.load_dataset reads."""
    from storage.datasets import copy_to
    from workers.cli.show import counting

    with _datasets() as datasets, counting() as say:
        manifest = datasets.find(reference)
        done = iter(range(1, len(manifest.files) + 1))
        copy_to(datasets, manifest, to, lambda file: say("files", next(done), len(manifest.files)))
    if as_json:
        _print_json(_summary(manifest) | {"folder": str(to)})
        return
    print(f"{sum(manifest.pictures.values())} images in {to}")


@dataset.command()
def push(
    reference: Reference,
    repo: Annotated[str, typer.Option(metavar="USER/NAME", help="The hub's repository.")],
    private: Annotated[
        bool, typer.Option("--private", help="If the repository is made now.")
    ] = False,
    as_json: options.Json = False,
    set_: options.Set = None,
) -> None:
    """A version to the Hugging Face hub, with the token in HF_TOKEN."""
    from storage import hub
    from workers.cli.show import counting

    with _datasets() as datasets, counting() as say:
        manifest = datasets.find(reference)
        done = iter(range(1, len(manifest.files) + 1))
        address = hub.push(
            datasets,
            manifest,
            repo,
            private=private,
            saw=lambda file: say("files", next(done), len(manifest.files)),
        )
    if as_json:
        _print_json(_summary(manifest) | {"address": address})
        return
    print(f"{manifest.reference} is at {address}")


@contextmanager
def _datasets() -> "Iterator[Datasets]":
    from storage.datasets import Datasets
    from workers.cli.session import open_for_reading

    with open_for_reading() as store:
        yield Datasets(store)


def _summary(manifest: "Manifest") -> dict[str, Any]:
    """What a program may want to know; the files are in the manifest itself."""
    return {"dataset": manifest.reference, "bytes": manifest.bytes} | manifest.model_dump(
        mode="json", exclude={"files"}
    )


def _print_json(said: object) -> None:
    import json

    print(json.dumps(said, indent=1))


def _table_of(manifest: "Manifest") -> Any:
    from rich.table import Table

    table = Table(title=f"dataset {manifest.reference}", title_justify="left")
    table.add_column("category")
    for split in manifest.pictures:
        table.add_column(split, justify="right")
    for category, counts in sorted(manifest.composition.categories.items()):
        table.add_row(category, *(f"{counts.get(split, 0):,}" for split in manifest.pictures))
    table.add_section()
    table.add_row("all", *(f"{count:,}" for count in manifest.pictures.values()))
    return table


def _side_by_side(old: "Manifest", new: "Manifest") -> Any:
    from rich.table import Table

    table = Table("category", title="train + test", title_justify="left")
    for each in (old, new):
        table.add_column(each.reference, justify="right")
    names = sorted({*old.composition.categories, *new.composition.categories})
    for name in names:
        cells = []
        for each in (old, new):
            counts = each.composition.categories.get(name, {})
            cells.append(f"{counts.get('train', 0):,} + {counts.get('test', 0):,}")
        table.add_row(name, *cells)
    table.add_section()
    table.add_row("all", *(f"{e.pictures['train']:,} + {e.pictures['test']:,}" for e in (old, new)))
    return table
