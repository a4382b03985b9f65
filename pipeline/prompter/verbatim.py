"""The prompter that adds nothing: a base prompt is drawn as it is written.

For prompts that are detailed already, such as those of a suite that models are compared on.
"""

from pipeline.config import Run
from pipeline.prompter.budget import Budget, still_said
from pipeline.prompter.dialogue import Dialogue
from pipeline.prompter.plan import named_in
from pipeline.types import BasePrompt, DetailedPrompt, Expansion


class VerbatimPrompter:
    """One detailed prompt for each base prompt, with the same text."""

    def __init__(self, run: Run, budget: Budget) -> None:
        self._taxonomy, self._digest = run.taxonomy, run.prompter_digest
        self._budget = budget

    def expand(self, base: BasePrompt) -> Dialogue:
        """Asks nothing. What the models cannot read of it is cut off, and kept as `cut`."""
        yield from ()  # a dialogue without a question
        fits = self._budget.fits(base.text)
        text, cut = (base.text, "") if fits else self._budget.cut(base.text)
        category, attributes = named_in(base.text, self._taxonomy)
        prompt = DetailedPrompt(
            id=DetailedPrompt.id_of(self._digest, base.text, 0),
            base=base.text,
            index=0,
            text=text,
            category=category,
            attributes=still_said(attributes, cut),
            readings=self._budget.measure(text),
            cut=cut,
        )
        return Expansion(prompts=(prompt,))
