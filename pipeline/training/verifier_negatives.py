"""Negatives that are made: texts that a picture does not show, and hands that are no more right.

They are what keeps alignment from being read off the picture alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from pipeline.taxonomy import Taxonomy
from pipeline.training.verifier_labels import Judged

PATCH = (0.2, 0.4)  # of the shorter side: how large a corrupted place is
BLOCKS = 3  # a side, of a place that is shuffled
OBJECT, POSE = "object", "pose"
EVENLY: Mapping[str, float] = MappingProxyType({})
PLAUSIBLE = 0.8  # of changed objects and poses, those that still go together where any do


@dataclass(frozen=True)
class Wordings:
    """How a prompt may word each attribute, its object and its pose.

    together: objects and poses, each with those of the other that it goes with.
    """

    values: Mapping[str, tuple[str, ...]]
    together: Mapping[str, frozenset[str]]

    def claims(self, text: str, name: str) -> list[str]:
        """The values of an attribute that the text holds."""
        return [value for value, _ in _mentions(text, self.values[name])]

    def said(self, text: str) -> dict[str, str]:
        """The value of each attribute of which the text holds exactly one, once."""
        found = {name: self.claims(text, name) for name in self.values}
        return {name: each[0] for name, each in found.items() if len(each) == 1}


def wordings(taxonomy: Taxonomy) -> Wordings:
    """Those of a taxonomy."""
    categories = taxonomy.categories.values()
    together: dict[str, set[str]] = {}
    for category in categories:
        for thing in category.objects:
            together.setdefault(category.action, set()).add(thing)
            together.setdefault(thing, set()).add(category.action)
    return Wordings(
        {
            **{name: tuple(values) for name, values in taxonomy.attributes.items()},
            OBJECT: taxonomy.objects,
            POSE: tuple(category.action for category in categories),
        },
        {value: frozenset(others) for value, others in together.items()},
    )


def changed(
    text: str, known: Wordings, rng: random.Random, often: Mapping[str, float] = EVENLY
) -> str | None:
    """The text with one attribute's value replaced by another; None where there is none to replace.

    Only an attribute of which the text holds exactly one value, once, so that the change makes a
    picture that showed the text show it no more. An object mostly becomes another that goes with
    the pose, a pose another that goes with the object: what does not go together is told to be
    wrong without a look at the picture. often: how often each attribute is changed, relative to
    those that are not named, which count as 1.
    """
    said = known.said(text)
    names = [name for name in said if len(known.values[name]) > 1]
    weights = [often.get(name, 1.0) for name in names]
    if not any(weights):
        return None
    name = rng.choices(names, weights)[0]
    others = [each for each in known.values[name] if each != said[name]]
    partner = said.get({OBJECT: POSE, POSE: OBJECT}.get(name, ""))
    if partner is not None and rng.random() < PLAUSIBLE:
        fitting = known.together.get(partner, frozenset())
        others = [each for each in others if each in fitting] or others
    value = rng.choice(others)
    ((_, (start, end)),) = _mentions(text, known.values[name])
    before = text[:start]
    if article := re.search(r"\b(an?)\s$", before, re.IGNORECASE):
        right = "an" if value[0] in "aeiou" else "a"
        right = right.capitalize() if article[1][0].isupper() else right
        before = before[: article.start()] + right + before[article.end(1) :]
    return before + value + text[end:]


def _mentions(text: str, values: Sequence[str]) -> list[tuple[str, tuple[int, int]]]:
    """The values that stand in the text as words, with their places; of "ink pen" and "pen" in one
    place, the longer."""
    pattern, spelled = _pattern(tuple(values))
    return [(spelled[match[0].lower()], match.span()) for match in pattern.finditer(text)]


@lru_cache(maxsize=256)
def _pattern(values: tuple[str, ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """What finds any of the values, and how each is spelled."""
    if not values:
        return re.compile("(?!)"), {}
    words = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
    return pattern, {value.lower(): value for value in values}


def swapped(
    item: Judged, others: Sequence[Judged], known: Wordings, rng: random.Random
) -> str | None:
    """The prompt of another picture, of another base prompt and category; None if none is found.

    One that is worded as the taxonomy does must also claim something else: "a gray background"
    may be true of many pictures.
    """
    own = known.said(item.prompt)
    for _ in range(8):
        other = rng.choice(others)
        same_category = item.category and other.category == item.category
        if other.base == item.base or other.prompt == item.prompt or same_category:
            continue
        claims = known.said(other.prompt)
        if not claims or any(own.get(name, value) != value for name, value in claims.items()):
            return other.prompt
    return None


def negative_text(
    item: Judged,
    others: Sequence[Judged],
    known: Wordings,
    changed_share: float,
    rng: random.Random,
    often: Mapping[str, float] = EVENLY,
) -> str | None:
    """A text that the picture does not show, made in one of both ways; the other where one fails.

    changed_share: how often one attribute is changed, rather than the whole prompt swapped.
    """
    if rng.random() < changed_share:
        return changed(item.prompt, known, rng, often) or swapped(item, others, known, rng)
    return swapped(item, others, known, rng) or changed(item.prompt, known, rng, often)


def mirrored_text(text: str) -> str:
    """What the mirror image shows: left and right exchanged, in whatever letters."""

    def other(match: re.Match[str]) -> str:
        word = match[0]
        turned = "right" if word.lower() == "left" else "left"
        if word.isupper():
            return turned.upper()
        return turned.capitalize() if word[0].isupper() else turned

    return re.sub(r"\b(left|right)\b", other, text, flags=re.IGNORECASE)


def corrupted(pixels: Tensor, rng: random.Random) -> Tensor:
    """The picture with one place of it spoilt: mirrored, shuffled or smeared.

    pixels: (3, H, W) in [0, 1]. The place is a square around a point of the middle half, where
    hands are.
    """
    _, height, width = pixels.shape
    side = max(BLOCKS, round(min(height, width) * rng.uniform(*PATCH)))
    side -= side % BLOCKS
    y = min(max(0, round(height * rng.uniform(0.25, 0.75)) - side // 2), height - side)
    x = min(max(0, round(width * rng.uniform(0.25, 0.75)) - side // 2), width - side)
    here = (slice(None), slice(y, y + side), slice(x, x + side))
    spoilt = pixels.clone()
    spoilt[here] = rng.choice((_mirror, _shuffle, _smear))(pixels[here], rng)
    return spoilt


def _mirror(patch: Tensor, rng: random.Random) -> Tensor:
    return patch.flip(rng.choice((1, 2)))


def _shuffle(patch: Tensor, rng: random.Random) -> Tensor:
    """Its blocks in another order."""
    size = patch.shape[1] // BLOCKS
    blocks = patch.unfold(1, size, size).unfold(2, size, size).flatten(1, 2)  # 3, B * B, s, s
    order = list(range(BLOCKS**2))
    while order == sorted(order):
        rng.shuffle(order)
    rows = blocks[:, order].reshape(3, BLOCKS, BLOCKS, size, size)
    return rows.permute(0, 1, 3, 2, 4).reshape(patch.shape)


def _smear(patch: Tensor, rng: random.Random) -> Tensor:
    """Rubbed out along one direction, its edges kept."""
    side = patch.shape[1]
    coarse = (2, side) if rng.random() < 0.5 else (side, 2)
    small = interpolate(patch[None], size=coarse, mode="area")
    return interpolate(small, size=(side, side), mode="bilinear", align_corners=False)[0]


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """A picture a little moved, sharper or softer, tinted and noisy: (3, H, W) in [0, 1]."""
    _, height, width = pixels.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    reach = max(1, min(height, width) // 32)
    dy, dx = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    wide = pad(pixels[None], (reach,) * 4, mode="replicate")
    moved = wide[:, :, dy : dy + height, dx : dx + width]
    soft = avg_pool2d(pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    out = moved.lerp(soft, uniform(-0.6, 0.9).clamp(min=0))[0]
    out = out * uniform(0.93, 1.07) + uniform(-0.025, 0.025, 3, 1, 1)
    noise = torch.randn(out.shape, generator=generator)
    return (out + noise * uniform(-0.02, 0.04).clamp(min=0)).clamp(0, 1)
