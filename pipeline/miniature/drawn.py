"""Pictures that the miniature's proposers draw, for verifiers to learn from and be measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config import ProposerConfig
from pipeline.miniature.captions import scene_of
from pipeline.miniature.scenes import sample
from pipeline.models import fingerprint
from pipeline.specialists import shipped
from pipeline.types import BASE, Sampler

DRAWN = "drawn.jsonl"
AT_ONCE = 64
GUIDANCES = (1.0, 2.0, 3.0)
"""Of the pictures to learn from: without guidance more of them show something else than asked."""


def draw_prompts(out: Path, seed: int, count: int, *, held_out: bool, model: str) -> None:
    """Writes NNNNN.png and DRAWN; goes on where it was interrupted.

    Half of the pictures are drawn by the base, half by the specialist of their category. Those to
    learn from vary in guidance; held-out ones are drawn by the default sampler.
    """
    out.mkdir(parents=True, exist_ok=True)
    from pipeline.miniature.drawing import seeds_for

    guidances = (Sampler().guidance_scale,) if held_out else GUIDANCES
    seeds = seeds_for(seed, count)
    rows = [
        {
            "number": number,
            "asked": scene_of(example.asked),
            "variant": example.variant,
            "caption": example.caption,
            "seed": seeds[number],
            "guidance_scale": guidances[number // 2 % len(guidances)],
            "proposer": (BASE, example.asked.category)[number % 2],
        }
        for number, example in enumerate(sample(seed, count, 0.0, 0.0, held_out=held_out))
    ]
    (out / DRAWN).write_text("".join(json.dumps(row) + "\n" for row in rows))
    # As runs do, or nearly so in three fifths of the time.
    config = ProposerConfig(model=model, dtype="float32" if held_out else "bfloat16")
    _draw(out, rows, config)


def _draw(out: Path, rows: list[dict[str, Any]], config: ProposerConfig) -> None:
    """Draws those whose pictures are not there yet."""
    from pipeline.proposer.diffusion import DiffusionProposer

    folders = {specialist.name: folder for specialist, folder in shipped()}
    adapters = {each.name: each.adapter(each.category) for each, _ in shipped()}
    proposer = DiffusionProposer.load(
        config, fingerprint(config.model, "base"), lambda adapter: folders[adapter.name]
    )
    passes: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if not picture_of(out, row).exists():
            passes.setdefault((row["proposer"], row["guidance_scale"]), []).append(row)
    for (name, guidance), wanted in sorted(passes.items()):
        for first in range(0, len(wanted), AT_ONCE):
            some = wanted[first : first + AT_ONCE]
            drawings = proposer.draw(
                [row["caption"] for row in some],
                [row["seed"] for row in some],
                Sampler(guidance_scale=guidance),
                adapters.get(name),
            )
            for row, drawing in zip(some, drawings, strict=True):
                drawing.image.save(picture_of(out, row))


def picture_of(folder: Path, row: dict[str, Any]) -> Path:
    """Where the picture of a line of DRAWN lies."""
    return folder / f"{row['number']:05}.png"
