"""Pictures that the base model draws for the verifier to learn from or to be measured on."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from pipeline.miniature.captions import ATTRIBUTES
from pipeline.miniature.drawing import draw, seeds_for
from pipeline.miniature.judge import Judge
from pipeline.miniature.scenes import SCENE_FAULTS, sample
from pipeline.miniature.verifier_data import scene_of
from pipeline.types import Sampler

CHUNK = 128
GUIDANCES = (2.0, 3.0)
"""Of the pictures to learn from, so that the verifier knows more than one setting."""


def draw_prompts(out: Path, base: Path, seed: int, count: int, held_out: bool) -> None:
    """Writes NNNNN.png and drawn.jsonl; goes on where it was interrupted.

    Pictures to learn from vary in guidance; held-out ones are drawn by the default sampler.
    """
    out.mkdir(parents=True, exist_ok=True)
    examples = list(sample(seed, count, 0.0, 0.0, held_out=held_out))
    seeds, default = seeds_for(seed, count), Sampler()
    lines = []
    for number, example in enumerate(examples):
        guidance = default.guidance_scale if held_out else GUIDANCES[number // CHUNK % 2]
        line = {
            "number": number,
            "asked": scene_of(example.asked),
            "variant": example.variant,
            "caption": example.caption,
            "seed": seeds[number],
            "guidance_scale": guidance,
        }
        lines.append(line)
    (out / "drawn.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for first in range(0, count, CHUNK):
        chunk = range(first, min(first + CHUNK, count))
        if (out / f"{chunk[-1]:05}.png").exists():
            continue
        images = draw(
            base,
            [examples[i].caption for i in chunk],
            [seeds[i] for i in chunk],
            default.num_inference_steps,
            float(str(lines[first]["guidance_scale"])),
        )
        for number, image in zip(chunk, images, strict=True):
            image.save(out / f"{number:05}.png")


def read_drawn(folder: Path) -> tuple[list[dict[str, object]], list[Image.Image]]:
    """The lines of drawn.jsonl and their pictures, as far as they are drawn."""
    lines = (folder / "drawn.jsonl").read_text("utf-8").splitlines()
    rows: list[dict[str, object]] = []
    images: list[Image.Image] = []
    for row in map(json.loads, lines):
        file = folder / f"{row['number']:05}.png"
        if file.exists():
            rows.append(row)
            images.append(Image.open(file))
    return rows, images


def label_drawn(folder: Path, teacher: Judge) -> None:
    """Writes labels.jsonl: each line of drawn.jsonl with the teacher's probabilities.

    shown: those of each attribute's values, in the taxonomy's order; faults: of each fault.
    """
    rows, images = read_drawn(folder)
    heads = teacher.logits(images)
    faults = heads["faults"].sigmoid().tolist()
    shown = {name: heads[name].softmax(dim=1).tolist() for name in ATTRIBUTES}
    with (folder / "labels.jsonl").open("w", encoding="utf-8") as file:
        for i, row in enumerate(rows):
            row["shown"] = {name: shown[name][i] for name in ATTRIBUTES}
            row["faults"] = dict(zip(SCENE_FAULTS, faults[i], strict=True))
            file.write(json.dumps(row) + "\n")
