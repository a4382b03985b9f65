"""What a specialist is: its card, for people and for programs."""

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


class Card(Frozen):
    """Where a specialist comes from. instances: SHA-256 of each picture's pixels, by file name."""

    category: str
    base: ModelRef
    method: str
    prompts: tuple[str, ...]
    class_prompts: tuple[str, ...]
    instances: dict[str, str]
    class_images: int
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


@dataclass(frozen=True)
class Trained:
    """A specialist in its folder. new: was anything trained in this call?"""

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
        raise InputError(f"{str(path)!r} is no card of a specialist: {reason}") from None


def write_card(card: Card, folder: Path) -> None:
    """README.md, and last card.json, which says that the training came to its end."""
    (folder / README).write_text(_readme(card), "utf-8")
    partial = folder / f".{CARD}.partial"
    partial.write_text(card.model_dump_json(indent=2) + "\n", "utf-8")
    partial.replace(folder / CARD)


def _readme(card: Card) -> str:
    loop = card.config["loop"]
    head = {"library_name": "diffusers", "tags": ["text-to-image", "dreambooth", card.method]}
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
        "pictures": f"{len(card.instances):,}, and {card.class_images:,} class images of the base",
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
    return (
        f"---\n{front}\n---\n\n# A specialist for {card.category}\n\n"
        f"Trained by DreamBooth. With diffusers: `{use}`.\n\n"
        "![the same prompts and seeds before the training and after](samples.png)\n\n"
        f"|  |  |\n|---|---|\n{table}\n\n"
        f"## Prompts\n\n{_list(card.prompts)}\n{_class(card)}\n"
        f"## Pictures, by the SHA-256 of their pixels\n\n{_hashes(card.instances)}"
    )


def _list(texts: tuple[str, ...], shown: int = 20) -> str:
    more = f"- and {len(texts) - shown} more, in card.json\n" if len(texts) > shown else ""
    return "".join(f"- {text}\n" for text in texts[:shown]) + more


def _class(card: Card) -> str:
    if not card.class_prompts:
        return ""
    return f"## Class prompts\n\n{_list(card.class_prompts)}"


def _hashes(hashes: Mapping[str, str]) -> str:
    return "".join(f"- {name}: `{sha256}`\n" for name, sha256 in hashes.items())
