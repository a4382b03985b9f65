"""`ppv strip`: one base prompt of a run as a picture."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import InputError
from workers.cli import options


def strip(
    run: options.Run,
    base_prompt: Annotated[
        str | None, typer.Argument(help="Which base prompt; by default the most telling one.")
    ] = None,
    to: Annotated[Path, typer.Option(help="The PNG file.")] = Path("strip.png"),
    set_: options.Set = None,
) -> None:
    """A base prompt, its detailed prompts and their proposals, accepted ones framed, as a PNG."""
    from pipeline.types import BasePrompt
    from storage.progress import records
    from storage.runs import RunFolder
    from workers.cli.session import open_for_reading
    from workers.pages.strip import draw_strip, telling_base_prompt

    with open_for_reading() as store:
        folder = RunFolder(store, run)
        chosen = base_prompt or telling_base_prompt(records(folder))
        expansion = folder.read_expansion(BasePrompt(text=chosen)) if chosen else None
        if chosen is None or expansion is None:
            raise InputError(f"run {run!r} has no detailed prompts for base prompt {chosen!r}")
        prompts = expansion.prompts
        ids = {prompt.id for prompt in prompts}
        draw_strip(
            folder.read(),
            chosen,
            prompts,
            [record for record in records(folder) if record.proposal.prompt.id in ids],
            lambda record: folder.read_image(record.id),
            to,
        )
    print(to)
