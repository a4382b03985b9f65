"""The miniature's specialists: the pictures they are trained on, and how they come along."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pipeline.miniature.render import render
from pipeline.miniature.scenes import sample, taxonomy
from pipeline.specialists import MODEL, SHIPPED, Specialist, describe
from pipeline.training.card import read_card

FILES = ("pytorch_lora_weights.safetensors", "card.json", "README.md", "samples.png")


def save_instances(out: Path, seed: int, each: int) -> None:
    """Writes `each` faultless pictures of every category, as CATEGORY/NNN.png with NNN.txt."""
    left = dict.fromkeys(taxonomy().categories, each)
    for example in sample(seed, 1000 * each, 0.0, 0.0):
        category = example.scene.category
        if left[category]:
            left[category] -= 1
            file = out / category / f"{each - left[category] - 1:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            render(example.scene).save(file)
            file.with_suffix(".txt").write_text(example.caption + "\n")
        if not any(left.values()):
            return


def ship(trained: Path) -> Iterator[Specialist]:
    """Copies what is needed of trained specialists, a folder each, to those that come along."""
    for folder in sorted(path for path in trained.iterdir() if path.is_dir()):
        card = read_card(folder)
        if card is None:
            continue
        to = SHIPPED / folder.name
        to.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(folder / name, to / name)
        made = datetime.fromtimestamp((folder / "card.json").stat().st_mtime, UTC)
        specialist = describe(
            to, folder.name, made.isoformat(timespec="seconds"), card.category, base=card.base
        )
        (to / MODEL).write_text(specialist.model_dump_json(indent=1) + "\n")
        yield specialist
