"""What a run's prompts cost, from the store alone."""

from pipeline.types import Usage
from storage.progress import failures
from storage.runs import RunFolder


def spending(folder: RunFolder) -> Usage:
    """What this run paid for: the answers behind its detailed prompts, and those in vain.

    Reads every base prompt's entry, as a stream.
    """
    run = folder.read()
    total = run.spent_before
    if run.prompter.kind == "grammar":
        return total
    for expansion in folder.expansions():
        total += expansion.usage
    for failure in failures(folder):
        total += failure.usage
    return total
