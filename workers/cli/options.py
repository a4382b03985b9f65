"""Options that commands share.

Command modules import nothing heavy before they run, so that `ppv --help` is quick.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer


def _override(assignments: list[str] | None) -> list[str] | None:
    from workers.settings import override

    for assignment in assignments or ():
        override(assignment)
    return assignments


def _run_name(name: str | None) -> str | None:
    """A wrong name ends the command before anything is started or written."""
    from storage.runs import check_run_name

    return None if name is None else check_run_name(name)


def _annotator(name: str | None) -> str | None:
    from storage.said import check_annotator

    return None if name is None else check_annotator(name)


Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.", callback=_run_name)]
AnyRun = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]", help="The run's name; all runs by default.", callback=_run_name
    ),
]
Priority = Annotated[
    Literal["low", "normal", "high"] | None,
    typer.Option(
        help="The run's share of the fleet beside other runs: each step counts four times the "
        "last. By default as it was, or normal."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting for this call, such as proposer.batch_size=8; may be repeated.",
        callback=_override,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Where report.html and dataset/ go; ppv-out/RUN by default.")
]
InputFormat = Annotated[
    Literal["txt", "jsonl", "csv"] | None,
    typer.Option("--format", help="What FILE holds; by default its ending says."),
]
ExportFormat = Annotated[
    Literal["hf", "webdataset", "imagefolder"],
    typer.Option("--format", help="hf is what datasets.load_dataset reads."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]
File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help='Base prompts: .txt (one a line), .jsonl or .csv (a field or column "prompt"); '
        '"-" is standard input.',
    ),
]
RunName = Annotated[
    str | None,
    typer.Option("--run", help="The run's name; by default that of the file.", callback=_run_name),
]
NewRun = Annotated[str, typer.Option("--run", help="The run's name.", callback=_run_name)]
Annotator = Annotated[
    str | None,
    typer.Option(help="Who answers; by default the login name.", callback=_annotator),
]
Host = Annotated[
    str, typer.Option(help="The address to listen at; this machine alone reaches 127.0.0.1.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")]
