"""What the miniature's verifier learns from: pictures, what they show, and captions for them.

A render's truth is exact; a drawn picture's is a reading by a teacher network, kept as
probabilities. Both become the same tensors, and every caption's target follows from them.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from pipeline.miniature.captions import ATTRIBUTES, Caption, any_caption, full, values_of
from pipeline.miniature.data import renders
from pipeline.miniature.scenes import HAND_FAULTS, Scene, is_held_out

SEEN_FAULTS = (*HAND_FAULTS, "out_of_reach")
FAULTY_HANDS, ALTERED = 0.5, 0.5
HAND = ATTRIBUTES.index("hand")
REACH = SEEN_FAULTS.index("out_of_reach")


@dataclass(frozen=True)
class Pictures:
    """N pictures and what is known of them.

    pixels: (N, 3, 64, 64) uint8. shown: for each of ATTRIBUTES, (N, K) the probability of each of
    its K values. faults: (N, 5) the probability of each of SEEN_FAULTS. asked: the caption that a
    picture was drawn for, or None for a render, which may be read as anything.
    """

    pixels: Tensor
    shown: list[Tensor]
    faults: Tensor
    asked: list[Caption | None]

    def __len__(self) -> int:
        return len(self.pixels)

    def scene(self, i: int) -> dict[str, str]:
        """The likeliest value of each attribute of picture i."""
        return {
            name: values_of(name)[int(probabilities[i].argmax())]
            for name, probabilities in zip(ATTRIBUTES, self.shown, strict=True)
        }

    def faithful(self) -> Tensor:
        """(N,) the probability that no hand fault shows."""
        return (1 - self.faults[:, : len(HAND_FAULTS)]).prod(dim=1)


def scene_of(scene: Scene) -> dict[str, str]:
    """A scene's attributes with its category."""
    return {"category": scene.category, **scene.attributes}


def rendered(seed: int, count: int, cache: Path | None = None) -> Pictures:
    """Renders and their exact truth; half have a hand fault, half are altered.

    Altered scenes that happen to be a held-out combination are passed over.
    """
    data = renders(seed, count, FAULTY_HANDS, ALTERED, cache=cache)
    kept = [i for i, example in enumerate(data.examples) if not is_held_out(example.scene)]
    scenes = [data.examples[i].scene for i in kept]
    shown: list[list[list[float]]] = [[] for _ in ATTRIBUTES]
    for scene in scenes:
        values = scene_of(scene)
        for column, name in zip(shown, ATTRIBUTES, strict=True):
            column.append([float(value == values[name]) for value in values_of(name)])
    return Pictures(
        torch.from_numpy(data.pictures[kept]).permute(0, 3, 1, 2).contiguous(),
        [torch.tensor(column) for column in shown],
        torch.tensor([[float(f in scene.faults) for f in SEEN_FAULTS] for scene in scenes]),
        [None] * len(kept),
    )


def drawn(folder: Path, keep: range = range(10)) -> Pictures:
    """Drawn pictures and the teacher's reading of them, from `labels.jsonl` and the PNGs beside it.

    keep: which tenths of the prompts to take, so that training and calibration share none.
    """
    lines = (folder / "labels.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["number"] % 10 in keep]
    return Pictures(
        torch.stack([pixels_of(Image.open(folder / f"{row['number']:05}.png")) for row in rows]),
        [torch.tensor([row["shown"][name] for row in rows]) for name in ATTRIBUTES],
        torch.tensor([[row["faults"][fault] for fault in SEEN_FAULTS] for row in rows]),
        [full(row["asked"], row["variant"]) for row in rows],
    )


def pixels_of(image: Image.Image) -> Tensor:
    """(3, 64, 64) uint8 of a 64x64 picture."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Batch:
    """B pictures with C captions each, and their targets in [0, 1].

    pixels: (B, 3, 64, 64) in [-1, 1], augmented. texts: B * C captions, a picture's together.
    shown, faults: of the pictures. fidelity: (B,). differs: (B * C, 7), does each attribute, and
    being in reach, differ from the caption's claim? alignment: (B * C,), that none does.
    """

    pixels: Tensor
    texts: list[str]
    shown: list[Tensor]
    faults: Tensor
    fidelity: Tensor
    differs: Tensor
    alignment: Tensor


def batch_of(pictures: Pictures, chosen: list[int], each: int, rng: random.Random) -> Batch:
    """The chosen pictures, each mirrored or not, with captions made up for them."""
    index = torch.tensor(chosen)
    pixels = pictures.pixels[index].float() / 127.5 - 1
    shown = [probabilities[index].clone() for probabilities in pictures.shown]
    captions: list[Caption] = []
    for row, i in enumerate(chosen):
        mirrored = rng.random() < 0.5
        scene, asked = pictures.scene(i), pictures.asked[i]
        if mirrored:  # the mirror image of a left hand is a right hand
            pixels[row] = pixels[row].flip(-1)
            shown[HAND][row] = shown[HAND][row].flip(0)
            scene["hand"] = _other(scene["hand"])
        for _ in range(each):
            if asked is not None and not mirrored and rng.random() < 0.4:
                captions.append(asked)
            else:
                captions.append(any_caption(scene, rng))
    faults = pictures.faults[index]
    differs = differences(captions, shown, faults, each)
    return Batch(
        pixels=augmented(pixels, torch.Generator().manual_seed(rng.getrandbits(32))),
        texts=[caption.text for caption in captions],
        shown=shown,
        faults=faults,
        fidelity=pictures.faithful()[index],
        differs=differs,
        alignment=(1 - differs).prod(dim=1),
    )


def differences(
    captions: list[Caption], shown: list[Tensor], faults: Tensor, each: int = 1
) -> Tensor:
    """(B * C, 7): the probability that each claim, the last being that the hand holds, is wrong."""
    rows = torch.zeros(len(captions), len(ATTRIBUTES) + 1)
    for row, caption in enumerate(captions):
        picture = row // each
        for column, name in enumerate(ATTRIBUTES):
            if name in caption.claims:
                value = values_of(name).index(caption.claims[name])
                rows[row, column] = 1 - shown[column][picture, value]
        if caption.holds:
            rows[row, -1] = faults[picture, REACH]
    return rows.clamp(0, 1)


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures as a model might have drawn them: moved, blurred, tinted and noisy.

    pixels: (B, 3, H, W) in [-1, 1]; the same come out.
    """
    count, _, height, width = pixels.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    dx, dy = torch.randint(0, 5, (2,), generator=generator).tolist()
    pixels = pad(pixels, (2, 2, 2, 2), mode="replicate")[..., dy : dy + height, dx : dx + width]
    soft = avg_pool2d(pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = pixels.lerp(soft, uniform(-0.6, 0.9, 1, 1, 1).clamp(min=0))
    pixels = pixels * uniform(0.93, 1.07, 1, 1, 1) + uniform(-0.05, 0.05, 3, 1, 1)
    noise = torch.randn(pixels.shape, generator=generator)
    return (pixels + noise * uniform(-0.04, 0.08, 1, 1, 1).clamp(min=0)).clamp(-1, 1)


def _other(side: str) -> str:
    return "left" if side == "right" else "right"
