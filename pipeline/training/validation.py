"""The fixed grid by which one sees what a training does: the same prompts and seeds every time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.proposer.diffusion import Proposer
from pipeline.training.plans import Plan
from pipeline.types import digest

VALIDATION = "validation"  # the folder; in it one for each step, with NN.png and PROMPTS
PROMPTS = "prompts.json"


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


def _notes_of(folder: Path) -> dict[str, Any]:
    notes: dict[str, Any] = json.loads((folder / PROMPTS).read_text("utf-8"))
    return notes
