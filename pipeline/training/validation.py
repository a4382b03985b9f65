"""The fixed grid by which one sees what a training does: the same prompts and seeds every time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.proposer.diffusion import Proposer
from pipeline.training.plans import Plan
from pipeline.types import digest

VALIDATION = "validation"  # the folder; in it one for each step, with NN.png and PROMPTS
PROMPTS = "prompts.json"
SAMPLES = "samples.png"
SAMPLES_PX = (2048, 1024)  # at most


def draw_grid(plan: Plan, proposer: Proposer, to: Path, step: int) -> None:
    """Draws the grid of a step into its folder, unless it lies there already."""
    folder = to / VALIDATION / f"{step:06}"
    notes = {"training": digest(plan.identity), "prompts": plan.validation_prompts}
    if folder.exists():
        if _notes_of(folder).get("training") == notes["training"]:
            return
        shutil.rmtree(folder)  # of an earlier call with other settings
    texts, size = plan.validation_prompts, plan.config.draw_batch_size
    seeds = [int(digest([plan.config.loop.seed, n])[:15], 16) for n in range(len(texts))]
    partial = folder.with_name(f".{folder.name}")
    partial.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(texts), size):
        part = slice(start, start + size)
        drawings = proposer.draw(texts[part], seeds[part], plan.sampler)
        for number, drawing in enumerate(drawings, start):
            drawing.image.save(partial / f"{number:02}.png")
    (partial / PROMPTS).write_text(json.dumps(notes, indent=2) + "\n")
    partial.replace(folder)


def save_samples(to: Path) -> None:
    """Writes SAMPLES: what was drawn before the training, and below it the same seeds after."""
    grids = sorted(folder for folder in (to / VALIDATION).glob("[0-9]*") if folder.is_dir())
    rows = [sorted(folder.glob("*.png")) for folder in (grids[0], grids[-1])]
    pictures = [[Image.open(file) for file in row] for row in rows]
    width, height = pictures[0][0].size
    sheet = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    for y, row in enumerate(pictures):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * width, y * height))
    sheet.thumbnail(SAMPLES_PX)
    sheet.save(to / SAMPLES)


def _notes_of(folder: Path) -> dict[str, Any]:
    notes: dict[str, Any] = json.loads((folder / PROMPTS).read_text("utf-8"))
    return notes
