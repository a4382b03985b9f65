"""The offline prompter: fills the taxonomy's templates, the same for the same base prompt.

Words of the base prompt that the taxonomy knows are kept ("a red mug" stays red); everything else
varies, spread evenly over the taxonomy's values.
"""

import random
import re
from collections.abc import Iterator
from typing import TypeVar

from pipeline.config import Run
from pipeline.errors import PromptFailed
from pipeline.taxonomy import Taxonomy
from pipeline.types import BasePrompt, DetailedPrompt

T = TypeVar("T")


class GrammarPrompter:
    """Detailed prompts from a taxonomy alone."""

    def __init__(self, run: Run) -> None:
        self._taxonomy = run.taxonomy
        self._digest = run.prompter_digest
        self._count = run.prompter.prompts_per_base

    def expand(self, base: BasePrompt) -> tuple[DetailedPrompt, ...]:
        """Raises PromptFailed if the base prompt names no object and no category."""
        scenes = self._scenes(base)
        prompts = []
        for index in range(self._count):
            category, attributes = next(scenes)
            prompts.append(
                DetailedPrompt(
                    id=DetailedPrompt.id_of(self._digest, base.text, index),
                    base=base.text,
                    index=index,
                    text=self._taxonomy.describe(category, attributes, variant=index),
                    category=category,
                    attributes=attributes,
                )
            )
        return tuple(prompts)

    def _scenes(self, base: BasePrompt) -> Iterator[tuple[str, dict[str, str]]]:
        """Scenes without end that fit the base prompt: category and attributes."""
        taxonomy = self._taxonomy
        objects = _named(base.text, taxonomy.objects)
        categories = _named(base.text, tuple(taxonomy.categories))
        if not objects and not categories:
            raise PromptFailed(
                f"{base.text[:80]!r} names neither an object nor a category of taxonomy "
                f"{taxonomy.name!r} (objects: {', '.join(taxonomy.objects)}; "
                f"categories: {', '.join(taxonomy.categories)})"
            )
        pairs = _pairs(taxonomy, objects, categories)
        order = random.Random(DetailedPrompt.id_of(self._digest, base.text, 0))
        cycles = {
            name: _cycle(_named(base.text, values) or values, order)
            for name, values in taxonomy.attributes.items()
        }
        for category, thing in _cycle(pairs, order):
            attributes = {"object": thing}
            yield category, attributes | {name: next(cycle) for name, cycle in cycles.items()}


def _pairs(
    taxonomy: Taxonomy, objects: tuple[str, ...], categories: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """The (category, object) pairs to draw: those the taxonomy has, else what was asked for."""
    pairs = tuple(
        (name, thing)
        for name, category in taxonomy.categories.items()
        if not categories or name in categories
        for thing in category.objects
        if not objects or thing in objects
    )
    return pairs or tuple((name, thing) for name in categories for thing in objects)


def _named(text: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the names that stand in the text as whole words, singular or plural."""
    found = (name for name in names if re.search(rf"\b{re.escape(name)}(s|es)?\b", text, re.I))
    return tuple(found)


def _cycle(values: tuple[T, ...], order: random.Random) -> Iterator[T]:
    """All values in random order, then all again in another, without end."""
    while True:
        yield from order.sample(values, len(values))
