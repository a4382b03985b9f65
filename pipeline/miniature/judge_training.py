"""Trains the judge: renders under its own seed, made to look like drawn pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pipeline.miniature.data import Renders, renders
from pipeline.miniature.judge import Judge, head_labels, new_network, split
from pipeline.miniature.loop import Budget, Trainer, to_unit
from pipeline.miniature.scenes import SCENE_FAULTS, Example
from pipeline.miniature.vae import encode, load_vae

BATCH = 64
FAULTY_HANDS, FAULTY_SCENES = 0.6, 0.3
FAULT_WEIGHT = 4.0
FALSE_ALARMS = 0.02  # per fault, on renders that the thresholds are set on


def train_judge(
    seed: int, out: Path, budget: Budget, resume: bool, cache: Path, count: int, vae_folder: Path
) -> None:
    """Trains on `count` renders, a third of them also through the autoencoder; saves to `out`."""
    torch.manual_seed(seed)
    labels = head_labels()
    data = renders(seed, count, FAULTY_HANDS, FAULTY_SCENES, cache=cache)
    plain = torch.from_numpy(data.pictures)
    trips = count // 3
    passed = round_trip(load_vae(vae_folder), plain[:trips], seed)
    pictures = torch.cat([plain, passed])
    classes, faults = targets(data.examples + data.examples[:trips], labels)
    print(f"{len(pictures)} pictures", flush=True)

    network = new_network(labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    trainer = Trainer({"network": network}, optimizer, budget, out / "judge.pt", resume)

    def step(number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, number))
        torch.manual_seed(int(rng.integers(2**31)))
        # half of a batch has been through the autoencoder
        picked = torch.from_numpy(
            np.concatenate(
                [
                    rng.integers(0, count, BATCH // 2),
                    rng.integers(count, count + trips, BATCH // 2),
                ]
            )
        )
        seen = augment(to_unit(pictures[picked]))
        with torch.autocast("cpu", torch.bfloat16):
            rows = network(seen)
        heads = split(rows.float(), labels)
        wrong = F.binary_cross_entropy_with_logits(heads.pop("faults"), faults[picked])
        named = sum(
            (F.cross_entropy(rows, classes[name][picked]) for name, rows in heads.items()),
            start=torch.zeros(()),
        )
        return {"loss": FAULT_WEIGHT * wrong + named / len(heads), "faults": wrong, "named": named}

    for _ in trainer.run(step, save_every=500):
        network.eval()
        Judge(network, labels, thresholds(network, labels, seed + 1)).save(out)
        network.train()


def targets(
    examples: list[Example], labels: dict[str, tuple[str, ...]]
) -> tuple[dict[str, Tensor], Tensor]:
    """Class indices by head, each (N,), and faults, (N, faults) float32."""
    classes = {
        name: torch.tensor([values.index(getattr(e.scene, name)) for e in examples])
        for name, values in labels.items()
    }
    faults = [[float(name in e.scene.faults) for name in SCENE_FAULTS] for e in examples]
    return classes, torch.tensor(faults)


@torch.no_grad()
def round_trip(vae: Any, pictures: Tensor, seed: int) -> Tensor:
    """Pictures through the autoencoder with noise on the latents. (N, 64, 64, 3) uint8."""
    torch.manual_seed(seed)
    parts = []
    for chunk in torch.split(pictures, 64):
        latents = encode(vae, chunk)
        strength = 0.25 * torch.rand(len(chunk), 1, 1, 1) / vae.config.scaling_factor
        with torch.autocast("cpu", torch.bfloat16):
            drawn = vae.decode(latents + strength * torch.randn_like(latents)).sample
        pixels = ((drawn.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        parts.append(pixels.permute(0, 2, 3, 1))
    return torch.cat(parts)


def augment(x: Tensor) -> Tensor:
    """Moves, blurs, recolours and adds noise. (B, 3, 64, 64) in [-1, 1], in and out."""
    n = len(x)
    turn = (torch.rand(n) - 0.5) * 0.14
    scale = 1 + (torch.rand(n) - 0.5) * 0.12
    moved = (torch.rand(n, 2) - 0.5) * 0.14
    cos, sin = scale * turn.cos(), scale * turn.sin()
    grid = F.affine_grid(
        torch.stack(
            [torch.stack([cos, -sin, moved[:, 0]], 1), torch.stack([sin, cos, moved[:, 1]], 1)], 1
        ),
        list(x.shape),
        align_corners=False,
    )
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)
    share = torch.rand(n, 1, 1, 1) * (torch.rand(n, 1, 1, 1) < 0.5)
    x = x + share * (blurred - x)
    gain = 1 + (torch.rand(n, 3, 1, 1) - 0.5) * 0.16
    shift = (torch.rand(n, 3, 1, 1) - 0.5) * 0.12
    noise = torch.randn_like(x) * 0.08 * torch.rand(n, 1, 1, 1)
    return x * gain + shift + noise


def thresholds(
    network: torch.nn.Sequential, labels: dict[str, tuple[str, ...]], seed: int
) -> dict[str, float]:
    """For each fault, the chance above which FALSE_ALARMS of the pictures without it lie.

    At least 0.5, so that a fault is never found where it is the less likely.
    """
    data: Renders = renders(seed, 2000, FAULTY_HANDS, FAULTY_SCENES)
    judge = Judge(network, labels, {})
    chance = judge.logits([Image.fromarray(p) for p in data.pictures])["faults"].sigmoid()
    _, faults = targets(data.examples, labels)
    found = {}
    for i, name in enumerate(SCENE_FAULTS):
        clean = chance[faults[:, i] == 0, i]
        found[name] = round(max(0.5, float(clean.quantile(1 - FALSE_ALARMS))), 4)
    return found
