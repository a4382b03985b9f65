"""Who draws a detailed prompt: the base, its category's specialist, all of them, or by shares."""

from collections.abc import Mapping

from pipeline.config import ProposerConfig, Run
from pipeline.errors import InputError
from pipeline.shipped import nearest
from pipeline.taxonomy import Taxonomy
from pipeline.types import BASE, DetailedPrompt, ProposerRef, digest

SPECIALIST = "specialist"
"""In a route of shares: the specialist of whatever category the prompt has."""


def check_routes(config: ProposerConfig, taxonomy: Taxonomy) -> None:
    """Raises InputError for a route or a specialist of a category that the taxonomy lacks."""
    for category in config.specialists:
        if category not in taxonomy.categories:
            raise InputError(
                f"proposer.specialists: the taxonomy {taxonomy.name!r} has no category "
                f"{category!r}: {nearest(category, taxonomy.categories)}"
            )
    if isinstance(config.route, str):
        return
    known = (BASE, SPECIALIST, *taxonomy.categories)
    for name in config.route:
        if name not in known:
            raise InputError(f"proposer.route names {name!r}: {nearest(name, known)}")
    if not sum(config.route.values()):
        raise InputError("proposer.route: at least one share must be above 0")


def specialised(config: ProposerConfig, taxonomy: Taxonomy) -> list[str]:
    """The categories whose specialists may draw under this route."""
    if config.route == BASE:
        return []
    categories = list(taxonomy.categories)
    if isinstance(config.route, str) or config.route.get(SPECIALIST):
        return categories
    return [name for name in categories if config.route.get(name)]


def who_draws(run: Run, prompt: DetailedPrompt, image: int) -> tuple[ProposerRef, ...]:
    """The proposers that draw a prompt's n-th image; the same ones whenever they are asked for."""
    route, (base, *specialists) = run.proposer.route, run.proposers
    if route == "all":
        return run.proposers
    by_category = {ref.adapter.category: ref for ref in specialists if ref.adapter}
    if isinstance(route, str):
        return (base if route == BASE else by_category.get(prompt.category, base),)
    name = _drawn_by_lot(route, prompt, image)
    return (by_category.get(prompt.category if name == SPECIALIST else name, base),)


def _drawn_by_lot(shares: Mapping[str, float], prompt: DetailedPrompt, image: int) -> str:
    """A name of `shares`, as likely as its share is large."""
    place = int(digest({"route": prompt.id, "image": image})[:12], 16) / 16**12
    place *= sum(shares.values())
    for name, share in shares.items():
        place -= share
        if place < 0:
            return name
    return max(shares, key=lambda name: shares[name])  # rounding ate the last share's end
