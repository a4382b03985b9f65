"""`ppv resume`: go on with a run."""

from pathlib import Path
from typing import Annotated

import typer

from workers.cli import options


def resume(
    run: options.Run,
    failed: Annotated[bool, typer.Option("--failed", help="Try failed items again, too.")] = False,
    out: options.Out = None,
    set_: options.Set = None,
) -> None:
    """Go on with what is missing, from the store alone, and wait until it is done.

    Works after a crash, after `ppv cancel`, and with queues that were wiped.
    """
    from workers.cli.work import finish

    finish(run, out or Path("ppv-out") / run, failed=failed)
