"""What a run paid to language models, from the store alone."""

from collections.abc import Callable

from pipeline.types import Expansion, Usage
from storage.progress import failures, records
from storage.runs import RunFolder


def spending(folder: RunFolder, look: Callable[[Expansion], object] | None = None) -> Usage:
    """What this run paid for: the answers behind its prompts and opinions, and those in vain.

    Reads every base prompt's entry, as a stream. look: is shown each, so that whoever wants more
    of them than their cost need not read them again.
    """
    run = folder.read()
    total = run.spent_before
    if run.verifier.opinions.vision:
        for record in records(folder):
            total += record.usage
    elif run.prompter.kind != "openai" and look is None:
        return total
    for expansion in folder.expansions():
        total += expansion.usage
        if look is not None:
            look(expansion)
    for failure in failures(folder):
        total += failure.usage
    return total
