"""Hand-pose categories and the attributes of a scene, read from a file: configuration, never code.

A taxonomy says which categories there are, how each is worded, which objects it is made for, which
attributes vary, and in what shares all of these are wanted: the target that prompters are steered
to. Users bring their own; `pipeline/taxonomies/` holds those that ship.
"""

import re
from pathlib import Path
from string import Formatter
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from pipeline.errors import TaxonomyError
from pipeline.shipped import nearest, read_yaml
from pipeline.types import Frozen

SHIPPED = Path(__file__).parent / "taxonomies"
RESERVED = ("text", "category", "object", "action", "number", "again")  # words of ours in a prompt


def _shares(value: Any) -> Any:
    """A list stands for equal shares: [a, b] is {a: 1, b: 1}."""
    if isinstance(value, list):
        for each in value:
            if not isinstance(each, str):  # YAML reads on, no and 1 as something else
                raise ValueError(f"{each!r} is no text: put it in quotes")
        if len(set(value)) < len(value):
            raise ValueError("a value stands there twice; give it a share instead: {value: 2}")
        return dict.fromkeys(value, 1.0)
    return value


Share = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Shares = Annotated[dict[str, Share], BeforeValidator(_shares), Field(min_length=1)]
"""Values and how much of each is wanted, in any unit: only their ratios count."""


class Category(Frozen):
    """One class of hand-object interaction."""

    action: str  # how a prompt says it: "holding in a power grasp"
    objects: Shares
    note: str = ""  # what a language model should know of it: which fingers, which contact
    share: Share = 1.0


class Example(Frozen):
    """One base prompt with a description as a language model should write it."""

    base: str
    category: str
    object: str
    attributes: dict[str, str]
    text: str


class Taxonomy(Frozen):
    """Categories, attributes, and the wordings that join them into a prompt."""

    name: str
    version: int
    source: str = ""  # where the categories come from
    templates: Annotated[tuple[str, ...], Field(min_length=1)]
    categories: Annotated[dict[str, Category], Field(min_length=1)]
    attributes: dict[str, Shares]
    examples: tuple[Example, ...] = ()

    @model_validator(mode="after")
    def _names_are_usable(self) -> "Taxonomy":
        for name in self.attributes:
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", name) or name in RESERVED:
                raise ValueError(
                    f"attribute {name!r}: use a word of a-z, 0-9 and '_' other than "
                    f"{', '.join(RESERVED)}"
                )
        return self

    @model_validator(mode="after")
    def _templates_name_known_fields(self) -> "Taxonomy":
        known = ("action", "object", *self.attributes)
        for template in self.templates:
            try:
                fields = list(Formatter().parse(template))
            except ValueError as reason:
                raise ValueError(f"template {template!r} cannot be filled: {reason}") from None
            for _, name, spec, conversion in fields:
                if name is not None and (spec or conversion):
                    raise ValueError(f"template {template!r}: write {{{name}}} and no more")
                if name is not None and name not in known:
                    raise ValueError(
                        f"template {template!r} names the unknown attribute {name!r}: "
                        f"{nearest(name, known)}"
                    )
        return self

    @model_validator(mode="after")
    def _examples_name_known_values(self) -> "Taxonomy":
        for example in self.examples:
            where = f"the example {example.base[:40]!r}"
            if example.category not in self.categories:
                raise ValueError(
                    f"{where} has the unknown category {example.category!r}: "
                    f"{nearest(example.category, self.categories)}"
                )
            for name, value in example.attributes.items():
                if name not in self.attributes:
                    raise ValueError(
                        f"{where} has the unknown attribute {name!r}: "
                        f"{nearest(name, self.attributes)}"
                    )
                if value not in self.attributes[name]:
                    raise ValueError(
                        f"{where} has the unknown {name} {value!r}: "
                        f"{nearest(value, self.attributes[name])}"
                    )
            if missing := set(self.attributes) - set(example.attributes):
                raise ValueError(f"{where} lacks the attribute {min(missing)!r}")
        return self

    @property
    def objects(self) -> tuple[str, ...]:
        """Every object of every category, once, in the file's order."""
        every = (name for category in self.categories.values() for name in category.objects)
        return tuple(dict.fromkeys(every))

    def describe(self, category: str, attributes: dict[str, str], variant: int = 0) -> str:
        """The prompt that words this scene; variant picks the template, modulo their number.

        attributes: a value for "object" and for each of the taxonomy's attributes.
        """
        template = self.templates[variant % len(self.templates)]
        return template.format(action=self.categories[category].action, **attributes)


def load_taxonomy(source: str) -> Taxonomy:
    """A taxonomy that ships, by name, or one of the user's, by its file.

    Raises TaxonomyError, in one line, for a file that is missing, is no YAML or does not fit.
    """
    return read_yaml(Taxonomy, source, SHIPPED, "taxonomy", TaxonomyError)
