"""Scenes of the drawn world: what a picture shows, what its caption asks, and how they differ."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from pipeline.miniature.hands import POSES
from pipeline.taxonomy import Taxonomy, load_taxonomy

HAND_FAULTS = ("extra_finger", "missing_finger", "fused_fingers", "floating_finger")
SCENE_FAULTS = (*HAND_FAULTS, "out_of_reach")
CAPTION_FAULTS = ("wrong_object", "wrong_pose", "wrong_color")
FAULTS = (*SCENE_FAULTS, *CAPTION_FAULTS)
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Scene:
    """What one picture shows; with its seed, all that determines it."""

    category: str
    object: str
    color: str
    skin: str
    hand: str
    background: str
    faults: tuple[str, ...] = ()  # of SCENE_FAULTS, at most one of HAND_FAULTS
    seed: int = 0  # of the small differences between pictures of one scene

    @property
    def attributes(self) -> dict[str, str]:
        """The values that a caption names, without the category."""
        return {
            "object": self.object,
            "color": self.color,
            "skin": self.skin,
            "hand": self.hand,
            "background": self.background,
        }


@dataclass(frozen=True)
class Example:
    """A scene and the caption that goes with it, which may ask for something else."""

    scene: Scene
    asked: Scene  # equal to `scene` but for its faults, unless the caption is wrong
    variant: int  # which of the taxonomy's templates

    @property
    def caption(self) -> str:
        """The caption's text."""
        return taxonomy().describe(self.asked.category, self.asked.attributes, self.variant)

    @property
    def faults(self) -> tuple[str, ...]:
        """The exact truth: every fault of the picture, read with its caption."""
        shown, asked = self.scene, self.asked
        wrong = [
            name
            for name, differs in (
                ("wrong_object", shown.object != asked.object),
                ("wrong_pose", shown.category != asked.category),
                ("wrong_color", shown.color != asked.color),
            )
            if differs
        ]
        return (*shown.faults, *wrong)

    @property
    def faithful(self) -> bool:
        """Is the hand right? (fidelity)"""
        return not set(self.faults) & set(HAND_FAULTS)

    @property
    def aligned(self) -> bool:
        """Does the picture show what the caption says? (alignment)"""
        return not set(self.faults) - set(HAND_FAULTS)


@lru_cache(maxsize=1)
def taxonomy() -> Taxonomy:
    """The miniature's own taxonomy."""
    return load_taxonomy("miniature")


def is_held_out(scene: Scene) -> bool:
    """Is this combination of attributes kept out of all training? A fixed tenth of them is."""
    key = "|".join([scene.category, *scene.attributes.values()])
    return hashlib.sha256(key.encode()).digest()[0] < 256 * HELD_OUT_SHARE


def combinations() -> list[Scene]:
    """Every faultless scene that the taxonomy can name, once, in a fixed order."""
    names = taxonomy()
    values = names.attributes
    return [
        Scene(category, thing, color, skin, hand, background)
        for category, grasp in names.categories.items()
        for thing in grasp.objects
        for color in values["color"]
        for skin in values["skin"]
        for hand in values["hand"]
        for background in values["background"]
    ]


def sample(
    seed: int,
    count: int,
    hand_fault_rate: float = 0.3,
    other_fault_rate: float = 0.05,
    held_out: bool = False,
) -> Iterator[Example]:
    """Examples drawn evenly over categories, the same ones for the same seed.

    hand_fault_rate: the share with one of HAND_FAULTS. other_fault_rate: the share, independent of
    it, that is out of reach or has a wrong caption. held_out: draw from the combinations kept out
    of training, instead of from the rest.
    """
    rng = random.Random(seed)
    by_category: dict[str, list[Scene]] = {}
    for scene in combinations():
        if is_held_out(scene) == held_out:
            by_category.setdefault(scene.category, []).append(scene)
    categories = sorted(by_category)
    for _ in range(count):
        asked = replace(rng.choice(by_category[rng.choice(categories)]), seed=rng.getrandbits(32))
        shown = asked
        if rng.random() < hand_fault_rate:
            shown = replace(shown, faults=(rng.choice(HAND_FAULTS),))
        if rng.random() < other_fault_rate:
            shown = _alter(shown, rng.choice(("out_of_reach", *CAPTION_FAULTS)), rng)
        yield Example(shown, asked, rng.randrange(len(taxonomy().templates)))


def with_fault(scene: Scene, fault: str, seed: int) -> Example:
    """The scene with exactly this fault, one of FAULTS, under the scene's own caption."""
    if fault not in FAULTS:
        raise ValueError(f"no fault {fault!r}; one of {', '.join(FAULTS)}")
    rng = random.Random(seed)
    shown = replace(scene, faults=(fault,)) if fault in HAND_FAULTS else _alter(scene, fault, rng)
    return Example(shown, scene, rng.randrange(len(taxonomy().templates)))


def _alter(scene: Scene, fault: str, rng: random.Random) -> Scene:
    """The scene out of reach, or another one than its caption asks for."""
    if fault == "out_of_reach":
        return replace(scene, faults=(*scene.faults, fault))
    if fault == "wrong_color":
        others = [c for c in taxonomy().attributes["color"] if c != scene.color]
        return replace(scene, color=rng.choice(others))
    if fault == "wrong_object":
        things = [t for t in POSES[scene.category].things if t != scene.object]
        return replace(scene, object=rng.choice(things))
    poses = [p for p, at in POSES.items() if scene.object in at.things and p != scene.category]
    return replace(scene, category=rng.choice(poses))
