"""What each detailed prompt of a base prompt should show, so that together they cover the target.

The target is the taxonomy's shares. k prompts of one base prompt are a stratified sample of it
(systematic in each attribute, with permutations between them, as in Latin hypercube sampling,
McKay et al. 1979): each value comes floor or ceil of k times its share, and over the base prompts
of a run, each as often as its share says.
"""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from pipeline.taxonomy import Taxonomy
from pipeline.types import digest

T = TypeVar("T")

_POSE = r"(?=[ -](grasp|grip|pinch|hold|pose|type)s?\b)"
"""What makes a category of a word: "a ring grasp" names one, "a ring" is an object."""


@dataclass(frozen=True)
class Brief:
    """One detailed prompt to be written."""

    category: str
    object: str | None  # None where the base prompt names none: whoever writes finds one
    attributes: dict[str, str]


class Plan:
    """The briefs of a base prompt, the same at every call.

    Words of the base prompt that the taxonomy knows are kept ("a red mug" stays red).
    """

    def __init__(self, taxonomy: Taxonomy, count: int, base: str) -> None:
        """count: how many prompts make one sample of the target, k."""
        self._taxonomy, self._count, self._base = taxonomy, count, base
        self.objects = _named(base, taxonomy.objects)
        self.categories = _named(base, tuple(taxonomy.categories), followed_by=_POSE)

    @property
    def is_blind(self) -> bool:
        """Whether the base prompt names nothing that the taxonomy knows."""
        return not self.objects and not self.categories

    def briefs(self) -> Iterator[Brief]:
        """Without end: the first k are one sample of the target, the next k another."""
        order = random.Random(digest({"plan": self._base, "taxonomy": self._taxonomy.name}))
        pairs = self._pairs()
        attributes = {
            name: {value: shares[value] for value in _named(self._base, tuple(shares)) or shares}
            for name, shares in self._taxonomy.attributes.items()
        }
        while True:
            scenes = _sample(pairs, self._count, order)
            columns = {name: _sample(each, self._count, order) for name, each in attributes.items()}
            for row, (category, thing) in enumerate(scenes):
                values = {name: column[row] for name, column in columns.items()}
                yield Brief(category, None if self.is_blind else thing, values)

    def _pairs(self) -> dict[tuple[str, str], float]:
        """The (category, object) pairs to draw from: those of the taxonomy, else as asked for."""
        pairs = {
            (name, thing): category.share * share / sum(category.objects.values())
            for name, category in self._taxonomy.categories.items()
            if not self.categories or name in self.categories
            for thing, share in category.objects.items()
            if not self.objects or thing in self.objects
        }
        return pairs or {(name, thing): 1.0 for name in self.categories for thing in self.objects}


def named_in(text: str, taxonomy: Taxonomy) -> tuple[str, dict[str, str]]:
    """The category that a text names, "" if none or several, and its attributes likewise.

    What it names is known by its words: "a red mug" has a colour and an object.
    """
    values = {"object": taxonomy.objects}
    values |= {name: tuple(shares) for name, shares in taxonomy.attributes.items()}
    found = {name: _named(text, known) for name, known in values.items()}
    categories = _named(text, tuple(taxonomy.categories), followed_by=_POSE)
    return _only(categories), {name: some[0] for name, some in found.items() if _only(some)}


def _only(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else ""


def _sample(shares: Mapping[T, float], count: int, order: random.Random) -> list[T]:
    """count values by systematic sampling of their shares, in random order."""
    total, start = sum(shares.values()), order.random()
    values, ends, end = list(shares), [], 0.0
    for share in shares.values():
        end += share / total
        ends.append(end)
    points = [(start + row) / count for row in range(count)]
    chosen = [values[min(len(values) - 1, sum(e <= point for e in ends))] for point in points]
    order.shuffle(chosen)
    return chosen


def _named(text: str, names: tuple[str, ...], followed_by: str = "") -> tuple[str, ...]:
    """Those of the names that stand in the text as whole words, singular or plural."""
    words = (re.escape(name).replace("_", "[ _-]") for name in names)
    found = (
        name
        for name, word in zip(names, words, strict=True)
        if re.search(rf"\b{word}(s|es)?\b{followed_by}", text, re.I)
    )
    return tuple(found)
