"""Ground truth of miniature pictures, whoever drew them: the judge's reading beside the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.miniature.captions import ATTRIBUTES
from pipeline.models import WEIGHTS
from pipeline.types import DetailedPrompt

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.miniature.judge import Judge, Reading

JUDGE = WEIGHTS / "judge"
"""The folder of the judge that comes with the project."""


@dataclass(frozen=True)
class Truth:
    """What a picture is. as_asked: everything that its prompt names, with the object in reach."""

    faultless: bool  # the hand has none of a hand's faults
    as_asked: bool


def truth(
    judge: Judge, pictures: Sequence[Image.Image], prompts: Sequence[DetailedPrompt]
) -> list[Truth]:
    """The truth of each picture. What a prompt does not name is not compared.

    pictures: of the drawn world, scaled to 64x64 where they are not. Raises ValueError if there are
    not as many prompts.
    """
    return [
        Truth(faultless=reading.faultless_hand, as_asked=_as_asked(reading, prompt))
        for reading, prompt in zip(judge.read(list(pictures)), prompts, strict=True)
    ]


def _as_asked(reading: Reading, prompt: DetailedPrompt) -> bool:
    asked = {**prompt.attributes, "category": prompt.category}
    shown = (
        getattr(reading, name) == " ".join(value.casefold().split())
        for name in ATTRIBUTES
        if (value := asked.get(name))
    )
    return all(shown) and "out_of_reach" not in reading.found
