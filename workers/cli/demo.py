"""`ppv demo`: the main job on nothing but this machine."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import InputError
from workers.cli import options

BASE_PROMPTS = Path(__file__).parents[2] / "examples" / "base_prompts.txt"


def demo(
    out: Annotated[Path, typer.Option(help="Where report.html and dataset/ go.")] = Path(
        "ppv-demo"
    ),
    set_: options.Set = None,
) -> None:
    """The main job on the embedded default: from examples/ to a verified dataset and its report.

    No key, no GPU, no server of yours. A second call finds everything done.
    """
    from workers.cli.work import work

    if not BASE_PROMPTS.exists():
        raise InputError(f"{BASE_PROMPTS} is missing: run the demo from a checkout")
    work(str(BASE_PROMPTS), "demo", out)
