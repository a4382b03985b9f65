"""The offline prompter: fills the taxonomy's templates, the same for the same base prompt."""

from collections.abc import Iterable
from itertools import islice

from pipeline.config import Run
from pipeline.errors import PromptFailed
from pipeline.prompter.budget import Budget, still_said
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
                f"{taxonomy.name!r} (objects: {_some(taxonomy.objects)}; "
                f"categories: {_some(taxonomy.categories)})"
            )
        briefs = plan.briefs()
        chosen = list(islice(briefs, self._count))
        texts = [self._text(index, brief) for index, brief in enumerate(chosen)]
        new = self._claim(base, texts, range(self._count))
        dropped: list[str] = []
        for _ in range(ATTEMPTS - 1):
            repeated = [index for index in range(self._count) if not new[index]]
            if not repeated:
                break
            for index in repeated:
                dropped.append(texts[index][0])
                chosen[index] = next(briefs)
                texts[index] = self._text(index, chosen[index])
            new |= self._claim(base, texts, repeated)
        prompts = tuple(
            DetailedPrompt(
                id=self._id(base, index),
                base=base.text,
                index=index,
                text=text,
                category=brief.category,
                attributes=still_said(_attributes(brief), cut),
                readings=self._budget.measure(text),
                cut=cut,
                repeats=not new[index],
            )
            for index, (brief, (text, cut)) in enumerate(zip(chosen, texts, strict=True))
        )
        return Expansion(prompts=prompts, dropped=tuple(dropped))

    def _text(self, index: int, brief: Brief) -> tuple[str, str]:
        """The scene in the first wording from the index-th on that fits, and what was cut off."""
        texts = [
            self._taxonomy.describe(brief.category, _attributes(brief), variant=index + more)
            for more in range(len(self._taxonomy.templates))
        ]
        fitting = next((text for text in texts if self._budget.fits(text)), "")
        return (fitting, "") if fitting else self._budget.cut(texts[0])

    def _claim(
        self, base: BasePrompt, texts: list[tuple[str, str]], indices: Iterable[int]
    ) -> dict[int, bool]:
        """For each of these indices, whether nothing like its text is in the run yet."""
        items = {index: (self._id(base, index), texts[index][0]) for index in indices}
        return dict(zip(items, self._neighbours.claim(list(items.values())), strict=True))

    def _id(self, base: BasePrompt, index: int) -> str:
        return DetailedPrompt.id_of(self._digest, base.text, index)


def _attributes(brief: Brief) -> dict[str, str]:
    return {"object": brief.object or "", **brief.attributes}


def _some(names: Iterable[str]) -> str:
    """The first dozen."""
    listed = list(names)
    return ", ".join(listed[:12]) + (", ..." if len(listed) > 12 else "")
