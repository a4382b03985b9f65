"""`ppv models`: the registry of specialists in the store."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from workers.cli import options

models = typer.Typer(help="The registry of specialists in the store.", no_args_is_help=True)


@models.command("list")
def list_(as_json: options.Json = False, set_: options.Set = None) -> None:
    """Every specialist with its versions, the newest first; and those that ship."""
    import json

    from rich.console import Console
    from rich.table import Table

    from pipeline.specialists import shipped
    from storage.models import Models
    from workers.cli.session import open_for_reading

    with open_for_reading() as store:
        registry = Models(store)
        found = [("store", each) for name in registry.names() for each in registry.versions(name)]
    found += [("shipped", each) for each, _ in shipped()]
    if as_json:
        print(json.dumps([{"where": where} | each.model_dump() for where, each in found], indent=1))
        return
    table = Table("model", "version", "category", "method", "base", "MB", "made", "where")
    for where, each in found:
        base = each.base.name if each.base else "unknown"
        size = f"{each.size_bytes / 1e6:.2f}"
        made = each.created_at[:10]
        table.add_row(each.name, each.version, each.category, each.method, base, size, made, where)
    Console(highlight=False).print(table)


@models.command()
def add(
    path: Annotated[
        Path,
        typer.Argument(help="A LoRA in safetensors, or a folder of `ppv train proposer`."),
    ],
    name: Annotated[str, typer.Option(help="What runs will call it.")],
    category: Annotated[str, typer.Option(help="The hand-pose category that it is for.")] = "",
    token: Annotated[str, typer.Option(help="The rare word that it answers to.")] = "",
    set_: options.Set = None,
) -> None:
    """Take an adapter into the registry: one made here, or a kohya-style or diffusers LoRA.

    It is checked against the base in proposer.model; runs then draw with it by its name, for
    instance with --set proposer.route=specialist --set proposer.specialists.CATEGORY=NAME.
    """
    from pipeline.models import folder_of
    from pipeline.specialists import describe
    from pipeline.taxonomy import load_taxonomy
    from pipeline.training.categories import check_category
    from storage.models import Models
    from workers.cli.session import open_for_reading
    from workers.settings import settings

    config = settings()
    if category:
        check_category(category, load_taxonomy(config.prompter.taxonomy))
    specialist = describe(
        path,
        name,
        datetime.now(UTC).isoformat(timespec="seconds"),
        category,
        token,
        base_folder=folder_of(config.proposer.model, "base"),
    )
    with open_for_reading() as store:
        Models(store).add(specialist, path)
    print(f"model    {specialist.reference}")
