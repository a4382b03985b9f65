"""Pictures that a base model draws of the miniature's captions, and sheets to look at them."""

from __future__ import annotations

import json
import random
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image
from PIL import Image, ImageDraw

from pipeline.miniature.canvas import SIZE_PX
from pipeline.miniature.scenes import Example, Scene, sample

BATCH = 32
ZOOM = 4
COLUMNS = 5
FOOT_PX = 62


def held_out_captions(seed: int, count: int) -> list[Example]:
    """Faultless examples of attribute combinations that no model was trained on."""
    return list(sample(seed, count, 0.0, 0.0, held_out=True))


def draw(
    folder: Path, captions: list[str], seeds: list[int], steps: int, guidance: float
) -> list[Image.Image]:
    """One picture for each caption, each from its own seed, by the pipeline in the folder."""
    pipe: Any = AutoPipelineForText2Image.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in range(0, len(captions), BATCH):
        some = seeds[start : start + BATCH]
        images += pipe(
            captions[start : start + BATCH],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in some],
        ).images
    return images


def seeds_for(seed: int, count: int) -> list[int]:
    """A seed for each picture."""
    rng = random.Random(seed)
    return [rng.getrandbits(31) for _ in range(count)]


def save_sheets(
    out: Path, images: list[Image.Image], examples: list[Example], seeds: list[int]
) -> None:
    """Writes pictures/NNN.png, captions.jsonl and sheet-N.png of 25 numbered pictures each."""
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (image, example, seed) in enumerate(zip(images, examples, seeds, strict=True)):
        image.save(out / "pictures" / f"{number:03}.png")
        asked = {k: v for k, v in asdict(example.asked).items() if k not in ("faults", "seed")}
        line = {"number": number, "seed": seed, "caption": example.caption, "asked": asked}
        lines.append(json.dumps(line))
    (out / "captions.jsonl").write_text("\n".join(lines) + "\n")
    each = COLUMNS * COLUMNS
    for start in range(0, len(images), each):
        sheet = _sheet(images[start : start + each], examples[start : start + each], start)
        sheet.save(out / f"sheet-{start // each + 1}.png")


def read_captions(file: Path) -> list[tuple[int, str, Scene]]:
    """Seed, caption and what it asks for, of each line that `save_sheets` or a labeller wrote."""
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [(line["seed"], line["caption"], Scene(**line["asked"])) for line in lines]


def _sheet(images: list[Image.Image], examples: list[Example], first: int) -> Image.Image:
    """Pictures four times as large, each with its number and caption below."""
    side = SIZE_PX * ZOOM
    rows = -(-len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (side + 8), rows * (side + FOOT_PX)), "white")
    draw_on = ImageDraw.Draw(sheet)
    for i, (image, example) in enumerate(zip(images, examples, strict=True)):
        x, y = i % COLUMNS * (side + 8), i // COLUMNS * (side + FOOT_PX)
        sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (x, y))
        text = "\n".join(textwrap.wrap(f"{first + i}: {example.caption}", 42))
        draw_on.multiline_text((x + 2, y + side + 2), text, fill="black")
    return sheet
