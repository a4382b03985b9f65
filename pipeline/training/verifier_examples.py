"""Batches of a verifier's training: pictures with true and made-up texts, new at each step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.training.denoising import Batch
from pipeline.training.verifier_guide import NOT_KNOWN, Questions
from pipeline.training.verifier_labels import Judged, open_picture
from pipeline.training.verifier_negatives import (
    augmented,
    corrupted,
    mirrored_text,
    negative_text,
)
from pipeline.training.verifier_plan import VerifierTraining
from pipeline.verifier import Verifier

UNKNOWN = -1.0
"""The target of a head of which nothing is said."""


class Pictures:
    """Pictures as the image processor sizes them; kept in memory as long as they fit."""

    def __init__(self, processor: Any, memory_bytes: int) -> None:
        self._processor, self._room = processor, memory_bytes
        self._kept: dict[str, Tensor] = {}

    def read(self, item: Judged) -> Tensor:
        """(3, H, W) float32 in [0, 1]."""
        kept = self._kept.get(item.sha256)
        if kept is None:
            picture = open_picture(item.picture)
            sized = self._processor(
                picture, do_rescale=False, do_normalize=False, return_tensors="np"
            )["pixel_values"][0]
            kept = torch.from_numpy(np.clip(np.rint(sized), 0, 255).astype(np.uint8))
            if kept.numel() <= self._room:
                self._room -= kept.numel()
                self._kept[item.sha256] = kept
        return kept.float() / 255


class Examples:
    """What a verifier is trained on. A picture's texts are read as clauses, as they are judged."""

    def __init__(
        self,
        items: Sequence[Judged],
        verifier: Verifier,
        config: VerifierTraining,
        asked: Questions,
    ) -> None:
        self._items, self._verifier, self._config = items, verifier, config
        self._asked = asked
        processor: Any = verifier.processor
        self._pictures = Pictures(processor, config.memory_bytes)
        self._mean = torch.tensor(processor.image_mean)[:, None, None]
        self._std = torch.tensor(processor.image_std)[:, None, None]

    def __len__(self) -> int:
        return len(self._items)

    def batch(self, rows: Sequence[int], generator: torch.Generator) -> Batch:
        """Some pictures, each with its own text and perhaps with one that it does not show.

        pixels: a list of (3, H, W). input_ids, attention_mask: (C, T) of clauses; pair: (C,), whose
        clause each is; picture: (P,), whose text each is. targets: (P, 2), UNKNOWN where nothing is
        said; made: (P,), is the text or the fault made up? shown: (B, A), faulty: (B, F) and wrong:
        (P, A + M): the answers to the Questions.
        """
        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        pixels: list[Tensor] = []
        texts: list[str] = []
        picture: list[int] = []
        targets: list[tuple[float, float]] = []
        made: list[bool] = []
        wrong: list[list[float]] = []
        every: list[_Seen] = []
        for place, row in enumerate(rows):
            seen = self._seen(self._items[row], rng, generator)
            every.append(seen)
            pixels.append((seen.pixels - self._mean) / self._std)
            for text, target, is_made, has_wrong in seen.readings:
                texts.append(text)
                picture.append(place)
                targets.append(target)
                made.append(is_made)
                wrong.append(has_wrong)
        return {
            "pixels": pixels,
            "picture": torch.tensor(picture),
            "targets": torch.tensor(targets),
            "made": torch.tensor(made),
            "wrong": torch.tensor(wrong, dtype=torch.float32),
            "shown": torch.tensor([seen.shown for seen in every]),
            "faulty": torch.tensor([seen.faulty for seen in every], dtype=torch.float32),
            **self.read(texts),
        }

    def read(self, texts: Sequence[str]) -> Batch:
        """The texts' clauses as tokens: input_ids, attention_mask and pair."""
        clauses = [(n, c) for n, text in enumerate(texts) for c in self._verifier.clauses(text)]
        encoded = [torch.tensor(self._verifier.tokenizer.encode(clause)) for _, clause in clauses]
        mask = [torch.ones(len(ids), dtype=torch.long) for ids in encoded]
        return {
            "input_ids": pad_sequence(encoded, batch_first=True),
            "attention_mask": pad_sequence(mask, batch_first=True),
            "pair": torch.tensor([n for n, _ in clauses]),
        }

    def _seen(self, item: Judged, rng: random.Random, generator: torch.Generator) -> _Seen:
        """One picture at one step: perhaps mirrored, perhaps spoilt, and what is said of it."""
        config = self._config
        pixels, prompt = self._pictures.read(item), item.prompt
        negative = None
        if item.alignment and rng.random() < config.negatives:
            share = config.changed_share
            negative = negative_text(
                item, self._items, self._asked.known, share, rng, config.changed_more
            )
        mirrored = rng.random() < config.mirrored
        if mirrored:
            pixels, prompt = pixels.flip(-1), mirrored_text(prompt)
            negative = mirrored_text(negative) if negative is not None else None
        fidelity, alignment = _target(item.fidelity), _target(item.alignment)
        asked = self._asked
        shown = asked.shown(prompt if item.alignment else "")
        faulty = asked.faulty(item)
        spoilt = item.fidelity is True and rng.random() < config.corrupted
        if spoilt:
            # Whether the spoilt picture still shows its text, nobody knows.
            pixels, fidelity, alignment = corrupted(pixels, rng), 0.0, UNKNOWN
            faulty, shown = [UNKNOWN] * len(faulty), [NOT_KNOWN] * len(shown)
        if config.augment:
            pixels = augmented(pixels, generator)
        own = asked.wrong(prompt, shown, asked.why(item))
        readings = [_Reading(prompt, (fidelity, alignment), spoilt, own)]
        if negative is not None:
            wrong = asked.wrong(negative, shown, None)
            readings.append(_Reading(negative, (fidelity, 0.0), True, wrong))
        return _Seen(pixels, readings, shown, faulty)


class _Reading(NamedTuple):
    """made: is the text or the picture's fault made up? wrong: what the text has wrong."""

    text: str
    targets: tuple[float, float]
    made: bool
    wrong: list[float]


@dataclass(frozen=True)
class _Seen:
    """One picture at one step, its texts, and what it shows."""

    pixels: Tensor
    readings: list[_Reading]
    shown: list[int]
    faulty: list[float]


def _target(answer: bool | None) -> float:
    return UNKNOWN if answer is None else float(answer)
