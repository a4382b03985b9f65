"""How the miniature's verifier is trained from scratch, calibrated, saved and measured.

Fidelity alone teaches a small network too little of fingers. So auxiliary heads ask, in training
only, for what the picture shows, for each fault, and for which of a caption's claims is wrong.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import cross_entropy
from transformers import BertTokenizer, ViltProcessor
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil

from pipeline.miniature.captions import (
    ATTRIBUTES,
    FILLERS,
    HOLDING,
    OPENINGS,
    any_caption,
    values_of,
)
from pipeline.miniature.loop import Budget, Trainer
from pipeline.miniature.scenes import taxonomy
from pipeline.miniature.verifier_data import (
    SEEN_FAULTS,
    Batch,
    Pictures,
    batch_of,
    differences,
)
from pipeline.verifier.network import ALIGNMENT, FIDELITY, ViltVerifier, ViltVerifierConfig

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Settings:
    """One training: what a step holds, and what each part of the loss weighs."""

    seed: int = 0
    look_steps: int = 1000  # at first, in which only the image side learns, from the early heads
    pictures: int = 32  # in a step
    captions: int = 2  # for each picture
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.02
    fidelity_weight: float = 1.5
    guide_weight: float = 0.5
    drawn_share: float = 0.0  # of a step's pictures that a model drew, the rest being renders


class Guide(nn.Module):
    """The auxiliary heads: what shows, what is wrong with it, and what the caption has wrong.

    The early ones read the image tokens before ViLT's layers, the late ones the features that the
    verifier's own heads read. They are not saved with the verifier.
    """

    def __init__(self, hidden: int, tokens: int = 16) -> None:
        super().__init__()
        sizes = [len(values_of(name)) for name in ATTRIBUTES]
        self.sizes = [*sizes, len(SEEN_FAULTS)]
        self.early = nn.Sequential(
            nn.LayerNorm(hidden),
            nn.Linear(hidden, 32),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(32 * tokens, 192),
            nn.GELU(),
            nn.Linear(192, sum(self.sizes)),
        )
        self.late = nn.Linear(2 * hidden, sum(self.sizes))
        self.differs = nn.Linear(2 * hidden, len(ATTRIBUTES) + 1)

    def look(self, image_embeds: Tensor, batch: Batch) -> Tensor:
        """What the pictures show, read from (B, 1 + N, D) image tokens alone."""
        return self._seen(self.early(image_embeds[:, 1:]), batch, 1)

    def read(self, features: Tensor, batch: Batch, captions: int) -> Tensor:
        """What they show and what their captions have wrong, read from (B * C, 2D) features."""
        differs = bce(self.differs(features).float(), batch.differs)
        return 3 * differs + self._seen(self.late(features), batch, captions)

    def _seen(self, logits: Tensor, batch: Batch, repeats: int) -> Tensor:
        *shown, faults = torch.split(logits.float(), self.sizes, dim=1)
        total = 3 * bce(faults, batch.faults.repeat_interleave(repeats, 0))
        for scores, target in zip(shown, batch.shown, strict=True):
            total = total + cross_entropy(scores, target.repeat_interleave(repeats, 0)) / 6
        return total


def vocabulary() -> list[str]:
    """The tokens: every word of the taxonomy and the captions whole, then letters and marks."""
    names = taxonomy()
    texts = [*names.templates, *(c.action for c in names.categories.values())]
    texts += [value for name in ATTRIBUTES for value in values_of(name)]
    texts += [*OPENINGS, *HOLDING, *FILLERS]
    texts += ["the of an is are with and or her his their person people one two fingers thumb"]
    texts += ["white black photo photograph render sharp focus light soft studio from while"]
    words = sorted({word for text in texts for word in re.findall(r"[a-z]+", text.lower())})
    single = [c for c in CHARACTERS if c not in words]
    return [*SPECIAL, *words, *single, *MARKS, *(f"##{c}" for c in CHARACTERS)]


def new_processor() -> ViltProcessor:
    """Tokenizer and image settings as a public ViLT's processor has them, for 64x64 pictures."""
    vocab = {token: i for i, token in enumerate(vocabulary())}
    images: dict[str, Any] = {
        "size": {"shortest_edge": 64},
        "size_divisor": 16,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return ViltProcessor(  # type: ignore[no-untyped-call]
        ViltImageProcessorPil(**images), BertTokenizer(vocab=vocab, model_max_length=40)
    )


def new_network() -> ViltVerifier:
    """The miniature's verifier with random weights: 1.0M parameters, 3 stem stages, 4x4 patches."""
    return ViltVerifier(
        ViltVerifierConfig(
            vocab_size=len(vocabulary()),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=64,
            patch_size=16,
            stem_channels=[32, 64, 128],
            pad_token_id=0,
        )
    )


def train(
    network: ViltVerifier,
    pools: list[Pictures],
    settings: Settings,
    budget: Budget,
    checkpoint: Path,
    resume: bool = False,
) -> None:
    """Trains the network in place, going on from the checkpoint where `resume` says so.

    pools: renders, and drawn pictures if settings.drawn_share is above 0. A step's data depends
    on the seed and the step alone, so that a training that was interrupted ends as one that was
    not.
    """
    torch.manual_seed(settings.seed)
    tokenizer = new_processor().tokenizer
    guide = Guide(network.config.hidden_size)
    captions = settings.captions

    def step(number: int) -> dict[str, Tensor]:
        batch = _step_batch(pools, settings, number)
        if number < settings.look_steps:
            with torch.autocast("cpu", torch.bfloat16):
                return {"loss": guide.look(network.embed_images(batch.pixels), batch)}
        with torch.autocast("cpu", torch.bfloat16):
            text = tokenizer(batch.texts, padding=True, return_tensors="pt")
            embeds = network.embed_images(batch.pixels)
            features = network.features(
                text["input_ids"], text["attention_mask"], embeds.repeat_interleave(captions, 0)
            )
            logits = network.heads(features)
            guidance = guide.look(embeds, batch) + guide.read(features, batch, captions)
        logits = logits.float()
        fidelity = bce(logits[:, FIDELITY], batch.fidelity.repeat_interleave(captions))
        alignment = bce(logits[:, ALIGNMENT], batch.alignment)
        loss = settings.fidelity_weight * fidelity + alignment + settings.guide_weight * guidance
        return {"loss": loss, "fidelity": fidelity, "alignment": alignment, "guide": guidance}

    trainer = Trainer(
        {"network": network, "guide": guide},
        torch.optim.AdamW(
            [*network.parameters(), *guide.parameters()],
            settings.learning_rate,
            (0.9, 0.98),
            weight_decay=settings.weight_decay,
        ),
        budget,
        checkpoint,
        resume,
    )
    network.train()
    for _ in trainer.run(step):
        pass
    network.train(False)


def calibrate(network: ViltVerifier, pictures: Pictures, seed: int) -> None:
    """Folds a scale and a shift of each head's logits into its last layer, in place.

    They are those that make the scores likeliest on these pictures (Platt 1999), half of them with
    a wrong caption, so that 0.5 is where right and wrong are equally likely.
    """
    logits, targets = _answers(network, pictures, seed)
    for column, head in ((FIDELITY, network.fidelity_head), (ALIGNMENT, network.alignment_head)):
        scale, shift = platt(logits[:, column].double(), targets[:, column].double())
        last = cast(nn.Linear, head[-1])
        with torch.no_grad():
            last.weight.mul_(scale)
            last.bias.mul_(scale).add_(shift)


def platt(logits: Tensor, targets: Tensor, iterations: int = 50) -> tuple[float, float]:
    """The scale and shift of (N,) logits that make (N,) targets in [0, 1] likeliest.

    Newton's method on the cross-entropy, which is convex, with steps halved until they help; a
    little weight decay keeps the optimum finite.
    """
    rows = torch.stack([logits, torch.ones_like(logits)], dim=1)
    start = at = torch.tensor([1.0, 0.0], dtype=rows.dtype)

    def loss(here: Tensor) -> float:
        away = (here - start).square().sum() / 2
        return float(bce(rows @ here, targets, reduction="sum") + away)

    for _ in range(iterations):
        scores = (rows @ at).sigmoid()
        gradient = rows.T @ (scores - targets) + (at - start)
        curvature = rows.T @ (rows * (scores * (1 - scores))[:, None]) + torch.eye(2).to(rows)
        step = torch.linalg.solve(curvature, gradient)
        while loss(at - step) > loss(at) and float(step.abs().max()) > 1e-9:
            step = step / 2
        at = at - step
    return float(at[0]), float(at[1])


def save(network: ViltVerifier, folder: Path) -> None:
    """The verifier's folder: float16 weights, configuration, tokenizer and image settings."""
    module: nn.Module = network  # whose `to` has types
    module.to(torch.float16)
    network.save_pretrained(folder)
    module.to(torch.float32)
    new_processor().save_pretrained(folder)


def _answers(network: ViltVerifier, pictures: Pictures, seed: int) -> tuple[Tensor, Tensor]:
    """Logits and targets, (N, 2) each, of every picture with one caption, half of them wrong."""
    rng, tokenizer = random.Random(seed), new_processor().tokenizer
    logits, targets = [], []
    faithful = pictures.faithful()
    for first in range(0, len(pictures), 64):
        chosen = list(range(first, min(first + 64, len(pictures))))
        captions = [any_caption(pictures.scene(i), rng, wrong_rate=0.5) for i in chosen]
        differs = differences(
            captions, [shown[chosen] for shown in pictures.shown], pictures.faults[chosen]
        )
        text = tokenizer([caption.text for caption in captions], padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits.append(
                network(
                    text["input_ids"],
                    text["attention_mask"],
                    pictures.pixels[chosen].float() / 127.5 - 1,
                )
            )
        targets.append(torch.stack([faithful[chosen], (1 - differs).prod(dim=1)], dim=1))
    return torch.cat(logits).clone(), torch.cat(targets)


def _step_batch(pools: list[Pictures], settings: Settings, step: int) -> Batch:
    rng = random.Random(f"{settings.seed}/{step}")
    shares = [1 - settings.drawn_share, settings.drawn_share]
    batches = []
    for pool, share in zip(pools, shares, strict=False):
        chosen = [rng.randrange(len(pool)) for _ in range(round(settings.pictures * share))]
        batches.append(batch_of(pool, chosen, settings.captions, rng))
    if len(batches) == 1:
        return batches[0]
    return Batch(
        pixels=torch.cat([b.pixels for b in batches]),
        texts=[text for b in batches for text in b.texts],
        shown=[torch.cat(columns) for columns in zip(*(b.shown for b in batches), strict=True)],
        faults=torch.cat([b.faults for b in batches]),
        fidelity=torch.cat([b.fidelity for b in batches]),
        differs=torch.cat([b.differs for b in batches]),
        alignment=torch.cat([b.alignment for b in batches]),
    )
