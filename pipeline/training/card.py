"""What was trained: its card, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.types import Frozen, ModelRef

CARD, README, CURVE = "card.json", "README.md", "curve.json"


class Learned(Frozen):
    """A dataset that was trained on. sha256: of its manifest."""

    name: str
    sha256: str
    pictures: int


class Card(Frozen):
    """Where an adapter, or a pipeline, comes from.

    A specialist has a category, prompts and instances (SHA-256 of each picture's pixels, by file
    name); what was fine-tuned has a dataset.
    """

    category: str = ""
    base: ModelRef
    method: str
    prompts: tuple[str, ...] = ()
    class_prompts: tuple[str, ...] = ()
    instances: dict[str, str] = {}
    class_images: int = 0
    dataset: Learned | None = None
    replay: Learned | None = None  # what was learned before, and must not be forgotten
    buckets: dict[str, int] = {}  # the dataset's pictures by their size, such as "64x64"
    resolution: int
    config: dict[str, Any]
    steps: int
    losses: dict[str, float]  # means over the last tenth of the steps
    images_per_s: float
    peak_memory_bytes: int
    device: str
    mixed_precision: str
    processes: int
    versions: dict[str, str]
    identity: str  # of settings, pictures and base together

    @property
    def title(self) -> str:
        if self.dataset:
            return f"Fine-tuned on {self.dataset.name}"
        return f"A specialist for {self.category}"


@dataclass(frozen=True)
class Trained:
    """What was trained, in its folder. new: was anything trained in this call?"""

    folder: Path
    card: Card
    new: bool


def read_card(folder: Path) -> Card | None:
    """The card of a folder that is trained to its end. Raises InputError if it is broken."""
    path = folder / CARD
    if not path.exists():
        return None
    try:
        return Card.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{str(path)!r} is no card of a training: {reason}") from None


def write_card(card: Card, folder: Path) -> None:
    """README.md, and last card.json, which says that the training came to its end."""
    (folder / README).write_text(_readme(card), "utf-8")
    partial = folder / f".{CARD}.partial"
    partial.write_text(card.model_dump_json(indent=2) + "\n", "utf-8")
    partial.replace(folder / CARD)


def _readme(card: Card) -> str:
    loop = card.config["loop"]
    way = "fine-tuning" if card.dataset else "dreambooth"
    head = {"library_name": "diffusers", "tags": ["text-to-image", way, card.method]}
    if card.base.weights.startswith("hub:"):
        head["base_model"] = card.base.name
    if len(card.prompts) == 1:
        head["instance_prompt"] = card.prompts[0]
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    rows = {
        "base": f"`{card.base.name}`, weights `{card.base.weights}`",
        "method": card.method,
        "steps": f"{card.steps:,} of {loop['batch_size']} pictures, at {card.resolution} px",
        "learning rate": f"{loop['learning_rate']:g}, {loop['lr_schedule']}",
        **_pictures(card),
        "last losses": ", ".join(f"{name} {value:.4f}" for name, value in card.losses.items()),
        "speed": f"{card.images_per_s:.2f} images/s on {card.processes} x {card.device}",
        "peak memory": f"{card.peak_memory_bytes / 2**20:,.0f} MiB",
        "versions": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    use = (
        "pipe.load_lora_weights(folder)" if card.method == "lora"
        else 'AutoPipelineForText2Image.from_pretrained(f"{folder}/pipeline")'
    )  # fmt: skip
    how = "on captioned pictures" if card.dataset else "by DreamBooth"
    return (
        f"---\n{front}\n---\n\n# {card.title}\n\n"
        f"Trained {how}. With diffusers: `{use}`.\n\n"
        "![the same prompts and seeds before the training and after](samples.png)\n\n"
        f"|  |  |\n|---|---|\n{table}\n"
        f"{_part('Prompts', _list(card.prompts))}"
        f"{_part('Class prompts', _list(card.class_prompts))}"
        f"{_part('Pictures, by the SHA-256 of their pixels', _hashes(card.instances))}"
    )


def _pictures(card: Card) -> dict[str, str]:
    if card.dataset is None:
        own, drawn = len(card.instances), card.class_images
        return {"pictures": f"{own:,}, and {drawn:,} class images of the base"}
    sizes = ", ".join(f"{count:,} at {size}" for size, count in card.buckets.items())
    rows = {
        "dataset": f"{_learned(card.dataset)}: {sizes}",
        "captions left out": f"{card.config['caption_dropout']:.0%}",
    }
    if card.replay:
        rows["replayed"] = f"{_learned(card.replay)}: {card.config['replay_share']:.0%} of batches"
    return rows


def _learned(dataset: Learned) -> str:
    return f"{dataset.name}, {dataset.pictures:,} pictures, manifest `{dataset.sha256}`"


def _part(title: str, text: str) -> str:
    return f"\n## {title}\n\n{text}" if text else ""


def _list(texts: tuple[str, ...], shown: int = 20) -> str:
    more = f"- and {len(texts) - shown} more, in card.json\n" if len(texts) > shown else ""
    return "".join(f"- {text}\n" for text in texts[:shown]) + more


def _hashes(hashes: Mapping[str, str]) -> str:
    return "".join(f"- {name}: `{sha256}`\n" for name, sha256 in hashes.items())
