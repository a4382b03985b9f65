"""`ppv run`: base prompts in, a verified dataset out."""

from pathlib import Path

from workers.cli import options


def run(
    file: options.File,
    name: options.RunName = None,
    out: options.Out = None,
    format: options.InputFormat = None,
    priority: options.Priority = None,
    set_: options.Set = None,
) -> None:
    """Take base prompts through prompt, propose and verify, and export what was accepted.

    Starts whatever of broker, store and workers is not configured or not up, waits, and writes
    the dataset and the report. The same call again goes on where the last one stopped.
    """
    from workers.cli.work import work
    from workers.inputs import run_name_of

    run_name = run_name_of(file) if name is None else name
    work(file, run_name, out or Path("ppv-out") / run_name, format, priority)
