"""How the scores of a long prompt are best made of its clauses' scores, by exact truth.

Held-out renders, half with a faulty hand, under prompts of several true sentences of which, in half
of the prompts, one is false in one attribute. An aggregation is measured by its AUC. The learned
one mixes the logits of minimum and mean; its weight is the one with the best AUC on other renders.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.miniature.captions import ATTRIBUTES, partial, scene_of, swapped
from pipeline.miniature.render import render
from pipeline.miniature.scenes import sample
from pipeline.types import Thresholds
from pipeline.verifier import Verifier
from pipeline.verifier.calibration import Floats, Truth, auc, auc_interval, logit

SENTENCES = (5, 12)  # of a prompt, at least and at most
WEIGHTS = np.linspace(0, 1, 21)  # of the minimum, that are tried
AT_ONCE = 64


@dataclass(frozen=True)
class LongPrompt:
    """A picture under a long prompt, and whether hand and prompt are right."""

    image: Image.Image
    text: str
    fidelity: bool
    alignment: bool


def long_prompts(seed: int, count: int) -> Iterator[LongPrompt]:
    """Renders that nothing was trained on, each with a prompt of its own."""
    rng = random.Random(seed)
    for number, example in enumerate(sample(seed, count, 0.5, 0.0, held_out=True)):
        scene, sentences = scene_of(example.scene), []
        for _ in range(rng.randint(*SENTENCES)):
            sentences.append(partial(scene, rng).text)
        if false := number % 2:
            name = rng.choice(ATTRIBUTES)
            wrong = partial(swapped(scene, rng, (name,)), rng)
            while name not in wrong.claims:
                wrong = partial(swapped(scene, rng, (name,)), rng)
            sentences[rng.randrange(len(sentences))] = wrong.text
        text = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)
        yield LongPrompt(render(example.scene), text, example.faithful, not false)


def compare(verifier: Verifier, seed: int = 40, count: int = 1000) -> dict[str, Any]:
    """The AUC of each aggregation with its 95% interval, for both scores.

    count: renders to measure on; as many others fit the weight of the minimum.
    """
    fitted, measured = (_read(verifier, list(long_prompts(at, count))) for at in (seed, seed + 1))
    figures: dict[str, Any] = {
        "prompts": f"{count:,} prompts of {measured.clauses:.1f} clauses in the mean",
        "auc": {},
        "weight_of_min": {},
    }
    groups = [str(n) for n in range(count)]
    for name, (low, mean, truth) in measured.scores.items():
        at = _best_weight(*fitted.scores[name])
        scores = {"min": low, "mean": mean, "learned": _mixed(low, mean, at)}
        figures["weight_of_min"][name] = at
        figures["auc"][name] = {
            way: (auc(each, truth), *(auc_interval(each, truth, groups) or (None, None)))
            for way, each in scores.items()
        }
    return figures


@dataclass(frozen=True)
class _Scores:
    """scores: minimum and mean over the clauses, and the truth, of fidelity and of alignment."""

    clauses: float
    scores: dict[str, tuple[Floats, Floats, Truth]]


def _read(verifier: Verifier, prompts: list[LongPrompt]) -> _Scores:
    verdicts = []
    for first in range(0, len(prompts), AT_ONCE):
        some = prompts[first : first + AT_ONCE]
        verdicts += verifier.judge([p.image for p in some], [p.text for p in some], Thresholds())
    scores = {}
    for name in ("fidelity", "alignment"):
        each = [[getattr(clause, name) for clause in verdict.clauses] for verdict in verdicts]
        truth = np.array([getattr(prompt, name) for prompt in prompts], np.bool_)
        low, mean = (np.array([way(row) for row in each], np.float64) for way in (min, np.mean))
        scores[name] = (low, mean, truth)
    return _Scores(sum(len(verdict.clauses) for verdict in verdicts) / len(verdicts), scores)


def _mixed(low: Floats, mean: Floats, weight: float) -> Floats:
    return weight * logit(low) + (1 - weight) * logit(mean)


def _best_weight(low: Floats, mean: Floats, truth: Truth) -> float:
    return float(max(WEIGHTS, key=lambda at: auc(_mixed(low, mean, at), truth) or 0.0))
