"""What a file's prompts would take, worked out before anything is sent."""

import json as json_module
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from pipeline.config import Run
from pipeline.errors import PromptFailed
from pipeline.prompter import load_prompter
from pipeline.prompter.budget import budget_of
from pipeline.prompter.endpoint import endpoint_address
from pipeline.prompter.near import MemoryNeighbours
from pipeline.types import BasePrompt
from storage.answers import Answers
from storage.runs import RunFolder
from workers.cli.session import open_for_reading
from workers.dispatch import new_run
from workers.pages.wording import dollars
from workers.settings import settings


def estimate(bases: Iterable[BasePrompt], name: str, *, json: bool) -> None:
    """Print requests, tokens and dollars, live and through the batches endpoint."""
    with open_for_reading() as store:
        run = new_run(settings(), name, store)
        figures = count(run, bases, Answers(store), RunFolder(store, name))
    dollars_live = _dollars(run, figures, batch=False)
    dollars_batch = _dollars(run, figures, batch=True)
    if json:
        both = {"usd": dollars_live, "usd_batch": dollars_batch}
        print(json_module.dumps(figures | both, indent=1))
        return
    table = Table(title=f"an estimate for {run.prompter_ref.name}; nothing was sent")
    table.add_column("")
    table.add_column("", justify="right")
    for key, number in figures.items():
        table.add_row(key.replace("_", " "), f"{number:,}")
    table.add_row("dollars", dollars(dollars_live))
    table.add_row("dollars with --batch", dollars(dollars_batch))
    if run.endpoint.spend_limit_usd:
        table.add_row("spending limit", dollars(run.endpoint.spend_limit_usd))
    if run.prompter.kind == "openai":
        table.caption = (
            "a token is taken for 4 bytes; without second tries for answers that cannot be used"
        )
    Console(highlight=False).print(table)


def count(
    run: Run, bases: Iterable[BasePrompt], answers: Answers, folder: RunFolder
) -> dict[str, int]:
    """Base prompts, and the first requests of those that the run does not have yet."""
    neighbours = MemoryNeighbours(run.prompter.near_duplicate)
    prompter = load_prompter(run, budget_of(run), neighbours, endpoint_address(run.prompter))
    names = ("base_prompts", "done", "requests", "cached", "input_tokens", "output_tokens")
    figures = dict.fromkeys(names, 0)
    for base in bases:
        figures["base_prompts"] += 1
        if folder.read_expansion(base) is not None:
            figures["done"] += 1
            continue
        try:
            requests = next(prompter.expand(base))
        except (StopIteration, PromptFailed):  # the grammar's, which asks nothing
            continue
        for request in requests:
            if answers.get(request.key) is not None:
                figures["cached"] += 1
                continue
            read, written = request.expected_tokens
            figures["requests"] += 1
            figures["input_tokens"] += read
            figures["output_tokens"] += written
    return figures


def _dollars(run: Run, figures: dict[str, int], *, batch: bool) -> float | None:
    """None where requests are to be sent at a price that is not known."""
    if run.price is None:
        return None if figures["requests"] else 0.0
    return run.price.of(figures["input_tokens"], figures["output_tokens"], batch=batch)
