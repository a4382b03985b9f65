"""The offline prompter: fills the taxonomy's templates, the same for the same base prompt."""

from itertools import islice

from pipeline.config import Run
from pipeline.errors import PromptFailed
from pipeline.prompter.budget import Budget
from pipeline.prompter.dialogue import Dialogue
from pipeline.prompter.near import Neighbours
from pipeline.prompter.plan import Brief, Plan
from pipeline.types import BasePrompt, DetailedPrompt, Expansion

ATTEMPTS = 4  # scenes looked at for each prompt, until one nearly repeats another for good


class GrammarPrompter:
    """Detailed prompts from a taxonomy alone."""

    def __init__(self, run: Run, budget: Budget, neighbours: Neighbours) -> None:
        self._taxonomy = run.taxonomy
        self._digest = run.prompter_digest
        self._count = run.prompter.prompts_per_base
        self._budget, self._neighbours = budget, neighbours

    def expand(self, base: BasePrompt) -> Dialogue:
        """Asks nothing. Raises PromptFailed if the base prompt names no object and no category."""
        yield from ()  # a dialogue without a question
        taxonomy = self._taxonomy
        plan = Plan(taxonomy, self._count, base.text)
        if plan.is_blind:
            raise PromptFailed(
                f"{base.text[:80]!r} names neither an object nor a category of taxonomy "
                f"{taxonomy.name!r} (objects: {', '.join(taxonomy.objects)[:400]}; "
                f"categories: {', '.join(taxonomy.categories)[:400]})"
            )
        briefs = plan.briefs()
        chosen = list(islice(briefs, self._count))
        dropped: list[str] = []
        new = self._claim(base, chosen, range(self._count))
        for _ in range(ATTEMPTS - 1):
            repeated = [index for index in range(self._count) if not new[index]]
            if not repeated:
                break
            for index in repeated:
                dropped.append(self._text(chosen[index], index))
                chosen[index] = next(briefs)
            new |= self._claim(base, chosen, repeated)
        prompts = tuple(
            self._prompt(base, index, brief, repeats=not new[index])
            for index, brief in enumerate(chosen)
        )
        return Expansion(prompts=prompts, dropped=tuple(dropped))

    def _claim(
        self, base: BasePrompt, briefs: list[Brief], indices: "range | list[int]"
    ) -> dict[int, bool]:
        """For each of these indices, whether nothing like its text is in the run yet."""
        items = [(self._id(base, index), self._text(briefs[index], index)) for index in indices]
        return dict(zip(indices, self._neighbours.claim(items), strict=True))

    def _prompt(
        self, base: BasePrompt, index: int, brief: Brief, *, repeats: bool
    ) -> DetailedPrompt:
        text, cut = self._text(brief, index), ""
        if not self._budget.fits(text):
            text, cut = self._budget.cut(text)
        return DetailedPrompt(
            id=self._id(base, index),
            base=base.text,
            index=index,
            text=text,
            category=brief.category,
            attributes=_attributes(brief),
            readings=self._budget.measure(text),
            cut=cut,
            repeats=repeats,
        )

    def _id(self, base: BasePrompt, index: int) -> str:
        return DetailedPrompt.id_of(self._digest, base.text, index)

    def _text(self, brief: Brief, index: int) -> str:
        return self._taxonomy.describe(brief.category, _attributes(brief), variant=index)


def _attributes(brief: Brief) -> dict[str, str]:
    return {"object": brief.object or "", **brief.attributes}
