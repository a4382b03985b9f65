"""What the tests of training share: a studio with pictures, an onlooker, and looks at weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline.taxonomy import load_taxonomy
from pipeline.training.card import Trained
from pipeline.training.dreambooth import train
from pipeline.training.dreambooth_plan import DreamBoothConfig, DreamBoothPlan, plan_training
from pipeline.training.loop import Point
from pipeline.training.lora import WEIGHTS
from pipeline.training.plans import configured
from pipeline.types import ModelRef, Sampler

PX = 32
SAMPLER = Sampler(num_inference_steps=1, guidance_scale=1.0)
TAXONOMY = load_taxonomy("miniature")
FAST: dict[str, Any] = {
    "class_images": 2,
    "validation_images": 1,
    "lora.rank": 2,
    "loop.steps": 2,
    "loop.learning_rate": 1e-2,
    "loop.validate_every": 100,
}


class Stopped(Exception):
    """As a power cut would."""


class Onlooker:
    """Keeps what it is told; stops the training after a step, if asked."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.points: list[Point] = []
        self.notes: list[str] = []
        self._stop_after = stop_after

    def stepped(self, point: Point, steps: int, examples_per_s: float) -> None:
        self.points.append(point)
        if point.step == self._stop_after:
            raise Stopped

    def noted(self, line: str) -> None:
        self.notes.append(line)


class Studio:
    """A folder with three instance pictures, in which specialists are trained."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.instances = pictures(folder / "pinch", 3)

    def plan(self, base: ModelRef, **settings: Any) -> DreamBoothPlan:
        config = configured(DreamBoothConfig, None, FAST | settings, SAMPLER)
        return plan_training("pinch", self.instances, TAXONOMY, base, config)

    def train(
        self,
        base: ModelRef,
        to: str = "out",
        stop_after: int | None = None,
        **settings: Any,
    ) -> Trained:
        onlooker = Onlooker(stop_after)
        plan = self.plan(base, **settings)
        return train(plan, self.folder / to, self.cache, onlooker, cpu=True)


def draw(pipe: Any) -> np.ndarray:
    images = pipe(
        "a hand",
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(1),
        height=32,
        width=32,
        output_type="np",
    ).images
    return np.asarray(images[0])


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    return load_file(trained.folder / WEIGHTS)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def pictures(folder: Path, count: int, size: tuple[int, int] = (PX, PX)) -> Path:
    """A folder of pictures of noise: 0.png, 1.png, ..."""
    folder.mkdir(parents=True)
    for number in range(count):
        noise(number, size).save(folder / f"{number}.png")
    return folder


def noise(seed: int, size: tuple[int, int] = (PX, PX)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)
