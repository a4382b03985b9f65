"""The judge: a small CNN that reads off a miniature picture what it shows and which faults it has.

It learns from renders with a seed of its own. It scores what the miniature's models draw, and
labels drawn pictures for the verifier; nothing that draws ever learns from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.errors import ModelError
from pipeline.miniature.canvas import SIZE_PX
from pipeline.miniature.scenes import HAND_FAULTS, SCENE_FAULTS, Scene, taxonomy

if TYPE_CHECKING:
    from torch import Tensor, nn

WIDTHS = (32, 64, 128, 192)


@dataclass(frozen=True)
class Reading:
    """What one picture shows, by the judge, and how likely each fault is (0 to 1)."""

    category: str
    object: str
    color: str
    skin: str
    hand: str
    background: str
    faults: dict[str, float]
    thresholds: dict[str, float]

    @property
    def found(self) -> tuple[str, ...]:
        """The faults that are likelier than their thresholds."""
        return tuple(name for name, p in self.faults.items() if p >= self.thresholds[name])

    @property
    def faultless_hand(self) -> bool:
        """Is the hand free of every fault of its own?"""
        return not set(self.found) & set(HAND_FAULTS)

    def agrees(self, asked: Scene) -> dict[str, bool]:
        """For each attribute, whether the picture shows what was asked."""
        names = ("category", "object", "color", "skin", "hand", "background")
        return {name: getattr(self, name) == getattr(asked, name) for name in names}


def head_labels() -> dict[str, tuple[str, ...]]:
    """The classes of each head, in the order of its outputs."""
    names = taxonomy()
    return {
        "category": tuple(names.categories),
        "object": names.objects,
        **{key: tuple(names.attributes[key]) for key in ("color", "skin", "hand", "background")},
    }


def new_network(labels: dict[str, tuple[str, ...]]) -> nn.Sequential:
    """The untrained CNN, 1.4M parameters: (B, 3, 64, 64) in [-1, 1] to a row of all heads."""
    from torch import nn

    def block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
        )

    a, b, c, d = WIDTHS
    outputs = sum(len(values) for values in labels.values()) + len(SCENE_FAULTS)
    return nn.Sequential(
        block(3, a, 2),
        block(a, a, 1),
        block(a, b, 2),
        block(b, b, 1),
        block(b, c, 1),
        block(c, c, 2),
        block(c, c, 1),
        block(c, d, 2),
        block(d, d, 1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(d * 16, 96),
        nn.ReLU(),
        nn.Linear(96, outputs),
    )


class Judge:
    """A trained network with its labels and thresholds."""

    def __init__(
        self,
        network: nn.Sequential,
        labels: dict[str, tuple[str, ...]],
        thresholds: dict[str, float],
    ) -> None:
        self.network, self.labels, self.thresholds = network.eval(), labels, thresholds

    def logits(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """Each head's raw outputs, (B, classes); key "faults" holds one logit per fault."""
        return split(self._through(self.network, images), self.labels)

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """What the heads read of each picture, (B, 96)."""
        return self._through(self.network[:-1], images)

    def _through(self, network: nn.Module, images: Sequence[Image.Image]) -> Tensor:
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), 256):
                rows = [_row(image) for image in images[start : start + 256]]
                pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float()
                parts.append(network(pixels / 127.5 - 1))
        return torch.cat(parts)

    def read(self, images: list[Image.Image]) -> list[Reading]:
        """What each picture shows. Pictures of another size than 64x64 are scaled to it."""
        if not images:
            return []
        heads = self.logits(images)
        chance = heads.pop("faults").sigmoid().tolist()
        best = {name: rows.argmax(1).tolist() for name, rows in heads.items()}
        return [
            Reading(
                **{name: self.labels[name][best[name][i]] for name in self.labels},
                faults=dict(zip(SCENE_FAULTS, chance[i], strict=True)),
                thresholds=self.thresholds,
            )
            for i in range(len(images))
        ]

    def save(self, folder: Path) -> None:
        """Writes model.safetensors and config.json."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.contiguous() for k, v in self.network.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        config = {"labels": self.labels, "faults": SCENE_FAULTS, "thresholds": self.thresholds}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_judge(folder: Path) -> Judge:
    """The judge of a folder that `Judge.save` wrote. Raises ModelError if it is not one."""
    from safetensors.torch import load_file

    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        labels = {name: tuple(values) for name, values in config["labels"].items()}
        network = new_network(labels)
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"no judge in {folder}: {error}") from error
    return Judge(network, labels, config["thresholds"])


def split(rows: Tensor, labels: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
    """The network's (B, outputs) by head, and "faults" at the end."""
    import torch

    sizes = [len(values) for values in labels.values()]
    parts = torch.split(rows, [*sizes, len(SCENE_FAULTS)], dim=1)
    return dict(zip([*labels, "faults"], parts, strict=True))


def _row(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(64, 64, 3) uint8."""
    rgb = image.convert("RGB")
    return np.asarray(rgb if rgb.size == (SIZE_PX, SIZE_PX) else rgb.resize((SIZE_PX, SIZE_PX)))
