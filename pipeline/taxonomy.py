"""Hand-pose categories and the attributes of a scene, read from a file: configuration, never code.

A taxonomy says which categories there are, how each is worded, which objects it is made for, and
which attributes vary. Users bring their own; `pipeline/taxonomies/` holds those that ship.
"""

import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from pipeline.errors import TaxonomyError
from pipeline.types import Frozen

SHIPPED = Path(__file__).parent / "taxonomies"


class Category(Frozen):
    """One class of hand-object interaction."""

    action: str  # how a prompt says it: "holding in a power grasp"
    objects: Annotated[tuple[str, ...], Field(min_length=1)]


class Taxonomy(Frozen):
    """Categories, attributes, and the wordings that join them into a prompt."""

    name: str
    version: int
    templates: Annotated[tuple[str, ...], Field(min_length=1)]
    categories: Annotated[dict[str, Category], Field(min_length=1)]
    attributes: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]

    @model_validator(mode="after")
    def _templates_name_known_fields(self) -> "Taxonomy":
        known = {"action", "object", *self.attributes}
        for template in self.templates:
            unknown = set(re.findall(r"{(\w*)}", template)) - known
            if unknown:
                raise ValueError(
                    f"template {template!r} names {', '.join(sorted(unknown))}; "
                    f"known are {', '.join(sorted(known))}"
                )
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
    path = SHIPPED / f"{source}.yaml"
    if not re.fullmatch(r"[\w-]+", source) or not path.exists():
        path = Path(source)
    try:
        return Taxonomy.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except FileNotFoundError:
        shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
        raise TaxonomyError(
            f"no taxonomy {source!r}: neither a file nor one that ships ({shipped})"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise TaxonomyError(f"taxonomy {source!r} cannot be read: {reason}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its top level"
        raise TaxonomyError(f"taxonomy {source!r}, at {where}: {first['msg']}") from error
