"""What may be said of a picture, whole or in part, rightly or wrongly: the verifier's captions.

A detailed prompt names every attribute, a base prompt few of them, a clause perhaps one. The
verifier has to judge them all, so it trains on all; every caption comes with what it claims.
"""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.miniature.scenes import Scene, taxonomy

ATTRIBUTES = ("category", "object", "color", "skin", "hand", "background")
KEPT = {
    "category": 0.55,
    "object": 0.8,
    "color": 0.5,
    "skin": 0.45,
    "hand": 0.45,
    "background": 0.5,
}
"""How likely a partial caption names each attribute."""
SWAPPED = {"category": 2, "object": 3, "color": 2, "skin": 1, "hand": 1, "background": 1}
"""How often a wrong caption is wrong about each, relative to the others."""
OPENINGS = ("a photo of", "a picture of", "a drawing of", "an image of", "close-up of", "a view of")
HOLDING = ("holding", "that holds", "grasping", "gripping")
FILLERS = ("nice", "small", "large", "clean", "simple", "detailed", "realistic", "beautiful")

Attributes = Mapping[str, str]  # a value for each of ATTRIBUTES


@dataclass(frozen=True)
class Caption:
    """A caption and what it claims."""

    text: str
    claims: dict[str, str]  # of ATTRIBUTES, those that the text names
    holds: bool  # does it say that the hand holds, touches or carries the object?


def values_of(attribute: str) -> tuple[str, ...]:
    """Every value that an attribute can take, in the taxonomy's order."""
    names = taxonomy()
    if attribute == "category":
        return tuple(names.categories)
    return names.objects if attribute == "object" else tuple(names.attributes[attribute])


def scene_of(scene: Scene) -> dict[str, str]:
    """A scene's attributes with its category."""
    return {"category": scene.category, **scene.attributes}


def full(scene: Attributes, variant: int) -> Caption:
    """The taxonomy's own wording, which names everything."""
    details = {name: scene[name] for name in ATTRIBUTES if name != "category"}
    text = taxonomy().describe(scene["category"], details, variant)
    return Caption(text, {name: scene[name] for name in ATTRIBUTES}, holds=True)


def random_caption(scene: Attributes, rng: random.Random) -> Caption:
    """A caption that claims this scene, in full or in part, with a few words that claim nothing."""
    if rng.random() < 0.5:
        caption = full(scene, rng.randrange(len(taxonomy().templates)))
    else:
        caption = partial(scene, rng)
    if rng.random() < 0.1:
        caption = Caption(_with_filler(caption.text, rng), caption.claims, caption.holds)
    return caption


def partial(scene: Attributes, rng: random.Random) -> Caption:
    """A caption that names some attributes: a base prompt, or one clause of a longer prompt."""
    kept = {name for name in ATTRIBUTES if rng.random() < KEPT[name]}
    shape = rng.random()
    if shape < 0.12:
        kept &= {"background"}
    elif shape < 0.2:
        kept &= {"skin", "hand"}
    elif shape < 0.3:
        kept &= {"object", "color"}
    if "object" not in kept:
        kept.discard("color")
    parts = []
    deed, holds = _deed(scene, kept, rng)
    subject = _subject(scene, kept, rng)
    bare_thing = shape >= 0.2 and shape < 0.3 and "object" in kept
    if bare_thing:
        parts, holds = [_thing(scene, kept)], False
    elif kept & {"skin", "hand"} or deed or not kept:
        # a clause may start at its verb, without the hand
        alone = deed and not kept & {"skin", "hand"} and rng.random() < 0.2
        parts = [deed if alone else " ".join(filter(None, (subject, deed)))]
    if "background" in kept:
        ground = f"{scene['background']} background"
        where = rng.choice((f" on a {ground}", f" in front of a {ground}", f", {ground}"))
        if parts and rng.random() < 0.15:
            parts = [f"{ground}, {parts[0]}"]
        else:
            parts = ["".join([*parts, where])] if parts else [where.strip(", ")]
    text = parts[0]
    if rng.random() < 0.3:
        text = f"{rng.choice(OPENINGS)} {text}"
    return Caption(text, {name: scene[name] for name in ATTRIBUTES if name in kept}, holds)


def random_scene(rng: random.Random) -> dict[str, str]:
    """Any scene that the taxonomy can name."""
    scene = {name: rng.choice(values_of(name)) for name in ATTRIBUTES}
    scene["object"] = rng.choice(tuple(taxonomy().categories[scene["category"]].objects))
    return scene


def swapped(scene: Attributes, rng: random.Random, names: tuple[str, ...]) -> dict[str, str]:
    """The scene with one of the named attributes changed."""
    name = rng.choices(names, [SWAPPED[name] for name in names])[0]
    return {**scene, name: rng.choice([v for v in values_of(name) if v != scene[name]])}


def any_caption(scene: Attributes, rng: random.Random, wrong_rate: float = 0.4) -> Caption:
    """A caption for a picture of this scene; with wrong_rate, one that claims something else."""
    if rng.random() >= wrong_rate:
        return random_caption(scene, rng)
    if rng.random() < 0.15:
        return random_caption(random_scene(rng), rng)
    seed = rng.getrandbits(32)
    right = random_caption(scene, random.Random(seed))
    if not right.claims:
        return right
    # the same wording again, of another scene
    return random_caption(swapped(scene, rng, tuple(right.claims)), random.Random(seed))


def _subject(scene: Attributes, kept: set[str], rng: random.Random) -> str:
    hand = f"{scene['hand']} hand" if "hand" in kept else "hand"
    if "skin" not in kept:
        return f"a {hand}"
    return rng.choice((f"a {scene['skin']} {hand}", f"a {hand} with {scene['skin']} skin"))


def _thing(scene: Attributes, kept: set[str]) -> str:
    return f"a {scene['color']} {scene['object']}" if "color" in kept else f"a {scene['object']}"


def _deed(scene: Attributes, kept: set[str], rng: random.Random) -> tuple[str, bool]:
    """What the hand does, in words, and whether that includes holding the object."""
    action = taxonomy().categories[scene["category"]].action
    if "object" in kept:
        verb = action if "category" in kept else rng.choice(HOLDING)
        return f"{verb} {_thing(scene, kept)}", True
    return (action.rsplit(" ", 1)[0], False) if "category" in kept else ("", False)


def _with_filler(text: str, rng: random.Random) -> str:
    """The text with one word more, after an article where there is one."""
    word = rng.choice(FILLERS)
    if rng.random() < 0.5:
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 7)))
    words = text.split()
    articles = [i + 1 for i, w in enumerate(words) if w == "a"]
    words.insert(rng.choice(articles or [0]), word)
    return " ".join(words)
