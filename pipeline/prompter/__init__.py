"""The prompter: a base prompt becomes k detailed prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import Run
    from pipeline.prompter.budget import Budget
    from pipeline.prompter.dialogue import Prompter
    from pipeline.prompter.near import Neighbours


def load_prompter(run: Run, budget: Budget, neighbours: Neighbours, address: str = "") -> Prompter:
    """The prompter that a run names.

    budget: measures texts by the run's tokenizers. neighbours: knows the texts that the run has.
    address: of the endpoint, for a prompter that asks one.
    """
    if run.prompter.kind == "openai":
        from pipeline.prompter.openai import OpenAIPrompter

        return OpenAIPrompter(run, address, budget, neighbours)
    if run.prompter.kind == "verbatim":
        from pipeline.prompter.verbatim import VerbatimPrompter

        return VerbatimPrompter(run, budget)
    from pipeline.prompter.grammar import GrammarPrompter

    return GrammarPrompter(run, budget, neighbours)
