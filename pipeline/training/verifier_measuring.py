"""What a verifier says of labelled pictures: its scores, their calibration, its thresholds."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from pipeline.evaluation.verifier import HEADS, Scored, arrays, decisions
from pipeline.training.verifier_card import Calibration, Point, Validation
from pipeline.training.verifier_labels import Judged, open_picture
from pipeline.training.verifier_negatives import Wordings, changed, negative_text, swapped
from pipeline.training.verifier_plan import VerifierPlan, VerifierTraining
from pipeline.types import Thresholds
from pipeline.verifier import Verifier
from pipeline.verifier.calibration import (
    OperatingPoint,
    Scaling,
    auc,
    cross_entropy,
    fit_scaling,
    for_acceptance,
    for_precision,
    logit,
    sigmoid,
)

AT_ONCE = 64  # pictures that are judged together
PRECISIONS = (0.8, 0.9, 0.95, 0.98)  # other operating points of a card


def judged(verifier: Verifier, items: Sequence[Judged]) -> list[Scored]:
    """The labelled pictures with the verifier's scores."""
    rows = []
    for first in range(0, len(items), AT_ONCE):
        some = items[first : first + AT_ONCE]
        pictures = [open_picture(item.picture) for item in some]
        verdicts = verifier.judge(pictures, [item.prompt for item in some], Thresholds())
        for item, verdict in zip(some, verdicts, strict=True):
            rows.append(
                Scored(
                    picture=item.picture,
                    prompt=item.prompt,
                    base=item.base,
                    category=item.category,
                    reasons=item.reasons,
                    fidelity=item.fidelity,
                    alignment=item.alignment,
                    fidelity_score=verdict.fidelity,
                    alignment_score=verdict.alignment,
                )
            )
    return rows


def validated(plan: VerifierPlan, verifier: Verifier, step: int) -> Validation:
    """A look at the validation part, or at as much of it as is configured."""
    some = _sample(plan.parts["validation"], plan.config.validation_pictures)
    rows = judged(verifier, some)
    texts = _false_texts(some, plan.known, plan.config.changed_share)
    false = _false_scores(verifier, some, texts)
    pairs = {head: arrays(rows, head) for head in HEADS}
    known = [pair for pair in pairs.values() if len(pair[0])]
    scores, truth = pairs["alignment"]
    return Validation(
        step=step,
        fidelity_auc=auc(*pairs["fidelity"]),
        alignment_auc=auc(*pairs["alignment"]),
        made_auc=_against(rows, false),
        texts_auc=auc(
            np.concatenate([scores, list(false.values())]),
            np.concatenate([truth, np.zeros(len(false), np.bool_)]),
        ),
        loss=sum(cross_entropy(*pair) for pair in known) / len(known),
    )


def _sample(items: Sequence[Judged], most: int) -> Sequence[Judged]:
    """Evenly from all of them, the same ones every time."""
    if len(items) <= most:
        return items
    return [items[n * len(items) // most] for n in range(most)]


def made_aucs(
    verifier: Verifier, items: Sequence[Judged], rows: Sequence[Scored], known: Wordings
) -> dict[str, float | None]:
    """How well true texts score above false ones, by how these are made."""
    rng = random.Random(1)
    false = {
        "swapped": [swapped(item, items, known, rng) if item.alignment else None for item in items],
        "changed": [changed(item.prompt, known, rng) if item.alignment else None for item in items],
    }
    return {
        name: _against(rows, _false_scores(verifier, items, texts)) for name, texts in false.items()
    }


def _false_texts(
    items: Sequence[Judged], known: Wordings, changed_share: float
) -> list[str | None]:
    """For each picture that shows its text, one that it does not show; the same every time."""
    rng = random.Random(0)
    return [
        negative_text(item, items, known, changed_share, rng) if item.alignment else None
        for item in items
    ]


def _false_scores(
    verifier: Verifier, items: Sequence[Judged], texts: Sequence[str | None]
) -> dict[int, float]:
    """Alignment of each picture with its false text, by the picture's place."""
    pairs = [(place, text) for place, text in enumerate(texts) if text is not None]
    scores: dict[int, float] = {}
    for first in range(0, len(pairs), AT_ONCE):
        some = pairs[first : first + AT_ONCE]
        pictures = [open_picture(items[place].picture) for place, _ in some]
        verdicts = verifier.judge(pictures, [text for _, text in some], Thresholds())
        for (place, _), verdict in zip(some, verdicts, strict=True):
            scores[place] = verdict.alignment
    return scores


def _against(rows: Sequence[Scored], false: Mapping[int, float]) -> float | None:
    """The AUC of pictures with their own texts against the same ones with false texts."""
    if not false:
        return None
    own = [rows[place].alignment_score for place in false]
    truth = [True] * len(own) + [False] * len(false)
    return auc(np.array([*own, *false.values()]), np.array(truth))


def choose(rows: Sequence[Scored], config: VerifierTraining) -> OperatingPoint:
    """The thresholds that the configuration asks for, on pictures whose answers are all known."""
    known = [row for row in rows if row.right is not None]
    fidelity = np.array([row.fidelity_score for row in known])
    alignment = np.array([row.alignment_score for row in known])
    right = np.array([bool(row.right) for row in known])
    if config.target_acceptance is not None:
        return for_acceptance(fidelity, alignment, right, config.target_acceptance)
    lower = config.precision_by == "lower"
    target = config.target_precision or 0.95
    return for_precision(fidelity, alignment, right, target, lower=lower)


def other_points(known: Sequence[Scored], tested: Sequence[Scored]) -> tuple[Point, ...]:
    """For other targets than the one that was asked for: chosen on the first, measured on the
    second."""
    points = []
    for target in PRECISIONS:
        config = VerifierTraining(target_precision=target)
        found = choose(known, config)
        at = found.thresholds
        points.append(Point(thresholds=at, reached=found.reached, decisions=decisions(tested, at)))
    return tuple(points)


def calibrate(
    verifier: Verifier, items: Sequence[Judged], *, with_shift: bool
) -> dict[str, Calibration]:
    """Folds a scale, and perhaps a shift, of each head's logits into its last layer."""
    rows = judged(verifier, items)
    network = verifier.network
    found = {}
    for head, layers in zip(HEADS, (network.fidelity_head, network.alignment_head), strict=True):
        scores, truth = arrays(rows, head)
        logits = logit(scores)
        scaling = fit_scaling(logits, truth, with_shift=with_shift)
        _fold(scaling, cast(nn.Linear, layers[-1]))
        found[head] = Calibration(
            temperature=scaling.temperature,
            shift=scaling.shift,
            before=cross_entropy(scores, truth),
            after=cross_entropy(sigmoid(scaling(logits)), truth),
            n=len(scores),
        )
    return found


@torch.no_grad()
def _fold(scaling: Scaling, last: nn.Linear) -> None:
    last.weight.mul_(scaling.scale)
    last.bias.mul_(scaling.scale).add_(scaling.shift)
