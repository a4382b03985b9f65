"""The prompter: a base prompt becomes k detailed prompts."""

from typing import Protocol

from pipeline.config import Run
from pipeline.types import BasePrompt, DetailedPrompt


class Prompter(Protocol):
    """Whatever makes detailed prompts."""

    def expand(self, base: BasePrompt) -> tuple[DetailedPrompt, ...]:
        """As many detailed prompts as the configuration says, in order of their index.

        Raises PromptFailed if the base prompt has none, ServiceError if an endpoint is away.
        """


def load_prompter(run: Run) -> Prompter:
    """The prompter that a run names."""
    if run.prompter.kind == "openai":
        from pipeline.prompter.openai import OpenAIPrompter

        return OpenAIPrompter(run)
    from pipeline.prompter.grammar import GrammarPrompter

    return GrammarPrompter(run)
