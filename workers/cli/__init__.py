"""The command line: `ppv`."""

import signal
import sys
from types import FrameType

import typer

from pipeline.errors import InputError, PpvError, ServiceError
from workers.cli import (
    cancel,
    dataset,
    demo,
    doctor,
    enqueue,
    evaluate,
    export,
    label,
    metrics,
    models,
    prompts,
    report,
    reproduce,
    resume,
    run,
    status,
    strip,
    train,
    up,
)

cli = typer.Typer(
    name="ppv",
    help="Prompt, propose, verify: make the picture dataset that does not exist yet.",
    epilog="Exit codes: 0 done; 1 finished with failures; 2 wrong input or configuration; "
    "3 a service cannot be reached. Workers: celery -A workers worker -Q prompt|propose|verify",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# What the light image goes without.
_MODEL_LIBRARIES = {"accelerate", "diffusers", "peft", "torch", "torchmetrics"}

for module in (
    demo,
    run,
    up,
    enqueue,
    status,
    resume,
    cancel,
    export,
    report,
    strip,
    label,
    reproduce,
    doctor,
    metrics,
):
    cli.command()(getattr(module, module.__name__.rpartition(".")[2]))
for name, group in (
    ("prompts", prompts.prompts),
    ("evaluate", evaluate.evaluate),
    ("train", train.train),
    ("models", models.models),
    ("dataset", dataset.dataset),
):
    cli.add_typer(group, name=name)


def main() -> None:
    """Run a command; what goes wrong on purpose is one line and an exit code, no traceback."""
    signal.signal(signal.SIGTERM, _end)  # so that children are stopped as on Ctrl-C
    try:
        cli()
    except InputError as error:
        sys.exit(_say(error, 2))
    except ServiceError as error:
        sys.exit(_say(error, 3))
    except PpvError as error:
        sys.exit(_say(error, 1))
    except ModuleNotFoundError as error:
        if error.name not in _MODEL_LIBRARIES:
            raise
        sys.exit(_say(f"this needs {error.name}, which is not installed here", 2))
    except KeyboardInterrupt:
        print("ppv: stopped; what is done is kept, and the same command goes on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _say(error: Exception | str, code: int) -> int:
    print(f"ppv: {error}", file=sys.stderr)
    return code
