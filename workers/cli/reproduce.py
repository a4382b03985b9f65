"""`ppv reproduce`: draw a picture again from its record."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import InputError
from workers.cli import options

MAX_DRIFT = 8.0
"""Mean difference of the pixels, of 255, up to which a picture counts as the same: what another
batch, device or version of a library makes of the same noise."""


def reproduce(
    run: options.Run,
    proposal: Annotated[
        str, typer.Argument(metavar="PROPOSAL", help="Its id, or the beginning of it.")
    ],
    to: Annotated[Path | None, typer.Option(help="Keep the new picture here, as PNG.")] = None,
    set_: options.Set = None,
) -> None:
    """Draw one image again from its record and compare; exits with 1 if it is another picture."""
    import numpy as np

    from pipeline.pictures import decode, encode
    from storage.progress import records
    from storage.runs import RunFolder
    from workers.cli.session import open_for_reading
    from workers.resources import proposer

    with open_for_reading() as store:
        folder = RunFolder(store, run)
        config = folder.read().proposer
        found = next((each for each in records(folder) if each.id.startswith(proposal)), None)
        if found is None:
            raise InputError(f"run {run!r} has no record of proposal {proposal!r}")
        before = decode(folder.read_image(found.id)).image
        what = found.proposal
        drawing = proposer(config, what.proposer.base).draw(
            [what.prompt.text], [what.seed], what.sampler, what.proposer.adapter
        )[0]
    if to:
        to.write_bytes(encode(drawing, what))
    difference = np.abs(np.asarray(before, np.int16) - np.asarray(drawing.image, np.int16))
    mean, largest = float(difference.mean()), int(difference.max())
    print(f"{found.id}: {what.prompt.text}")
    if largest == 0:
        print("the same pixels")
        return
    print(f"pixels differ by {mean:.3f} of 255 on average, {largest} at most")
    if mean > MAX_DRIFT:
        print(f"more than {MAX_DRIFT} on average: this is another picture")
        raise typer.Exit(1)
