"""How good a verifier is: by exact truth on held-out renders, by a judge on drawn pictures."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.config import VerifierConfig
from pipeline.miniature.captions import Caption, partial, swapped
from pipeline.miniature.judge import Judge
from pipeline.miniature.render import render
from pipeline.miniature.scenes import FAULTS, HAND_FAULTS, Scene, sample, with_fault
from pipeline.miniature.verifier_data import scene_of
from pipeline.miniature.verifier_drawn import read_drawn
from pipeline.types import Thresholds, Verdict
from pipeline.verifier import Verifier

Scores = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]


def auc(scores: Scores, positive: Truth) -> float:
    """The chance that a positive scores above a negative, ties counting half; NaN if all agree."""
    ranks = np.empty(len(scores))
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    first = np.searchsorted(ordered, ordered, side="left")
    last = np.searchsorted(ordered, ordered, side="right")
    ranks[order] = (first + last + 1) / 2
    above, below = int(positive.sum()), int((~positive).sum())
    if not above or not below:
        return float("nan")
    return float((ranks[positive].sum() - above * (above + 1) / 2) / (above * below))


def on_renders(verifier: Verifier, seed: int, count: int) -> dict[str, float]:
    """AUCs and recalls on renders of attribute combinations that no training has seen.

    fidelity: faultless hands against hands with a fault. alignment: true captions against those
    with something wrong, in full, and for captions that name only some attributes.
    recall.*: the share of pictures with that fault alone that the default thresholds reject.
    """
    cases = list(sample(seed, count, 0.4, 0.4, held_out=True))
    images = [render(case.scene) for case in cases]
    verdicts = _judge(verifier, images, [case.caption for case in cases])
    faithful = np.array([case.faithful for case in cases])
    aligned = np.array([case.aligned for case in cases])
    found = {
        "fidelity_auc": auc(_fidelity(verdicts), faithful),
        "alignment_auc": auc(_alignment(verdicts), aligned),
        **_selection(verdicts, faithful, aligned),
    }
    rng = random.Random(seed)
    in_reach = [i for i, case in enumerate(cases) if "out_of_reach" not in case.scene.faults]
    claims, right = [], []
    for n, i in enumerate(in_reach):
        claim, true = _partial_case(scene_of(cases[i].scene), rng, wrong=n % 2 == 0)
        claims.append(claim.text)
        right.append(true)
    partly = _judge(verifier, [images[i] for i in in_reach], claims)
    found["partial_alignment_auc"] = auc(_alignment(partly), np.array(right))
    clean = [case.asked for case in cases]
    for fault in FAULTS:
        wrong = [with_fault(scene, fault, seed + n) for n, scene in enumerate(clean[:300])]
        verdicts = _judge(
            verifier, [render(case.scene) for case in wrong], [case.caption for case in wrong]
        )
        hand = fault in HAND_FAULTS
        found[f"recall.{fault}"] = float(
            np.mean([(v.fidelity if hand else v.alignment) < 0.5 for v in verdicts])
        )
    return found


def on_drawn(verifier: Verifier, judge: Judge, folder: Path) -> dict[str, float]:
    """Against the judge, on pictures that the base model drew of prompts held out from all.

    good: the hand is faultless, the object within reach, and every attribute as asked.
    """
    rows, images = read_drawn(folder)
    verdicts = _judge(verifier, images, [str(row["caption"]) for row in rows])
    seen = judge.read(images)
    faultless = np.array([reading.faultless_hand for reading in seen])
    shows = np.array(
        [
            "out_of_reach" not in reading.found
            and all(reading.agrees(Scene(**row["asked"])).values())  # type: ignore[arg-type]
            for reading, row in zip(seen, rows, strict=True)
        ]
    )
    return {
        "fidelity_auc": auc(_fidelity(verdicts), faultless),
        "alignment_auc": auc(_alignment(verdicts), shows),
        **_selection(verdicts, faultless, shows),
    }


def by_eye(verifier: Verifier, labels: Path, pictures: Path) -> dict[str, float]:
    """Against labels made by eye, on the pictures that they were made for."""
    lines = [json.loads(line) for line in labels.read_text("utf-8").splitlines()]
    images = [Image.open(pictures / f"{line['number']:03}.png") for line in lines]
    verdicts = _judge(verifier, list(images), [line["caption"] for line in lines])
    faultless = np.array([bool(line["hand"]) for line in lines])
    shows = np.array(
        [all(line[name] for name in ("pose", "object", "color", "held")) for line in lines]
    )
    return {
        "fidelity_auc": auc(_fidelity(verdicts), faultless),
        "alignment_auc": auc(_alignment(verdicts), shows),
        **_selection(verdicts, faultless, shows),
    }


def _selection(verdicts: list[Verdict], faultless: Truth, shows: Truth) -> dict[str, float]:
    """What choosing does: by the thresholds, and by taking the fifth with the highest scores."""
    accepted = np.array([verdict.accepted for verdict in verdicts])
    both = _fidelity(verdicts) * _alignment(verdicts)
    top = np.argsort(-both)[: max(1, len(both) // 5)]
    good = faultless & shows
    return {
        "pictures": float(len(verdicts)),
        "accepted": float(accepted.mean()),
        "faultless hand: all": float(faultless.mean()),
        "faultless hand: accepted": float(faultless[accepted].mean()),
        "faultless hand: top fifth": float(faultless[top].mean()),
        "good: all": float(good.mean()),
        "good: accepted": float(good[accepted].mean()),
        "good: top fifth": float(good[top].mean()),
        "good that are accepted": float(accepted[good].mean()),
    }


def _partial_case(scene: dict[str, str], rng: random.Random, wrong: bool) -> tuple[Caption, bool]:
    """A caption that names some attributes of the scene, right or wrong about one of them."""
    while True:
        seed = rng.getrandbits(32)
        caption = partial(scene, random.Random(seed))
        if caption.claims and not wrong:
            return caption, True
        if caption.claims:
            other = swapped(scene, rng, tuple(caption.claims))
            return partial(other, random.Random(seed)), False


def load(folder: Path) -> Verifier:
    """The verifier of a folder, on the CPU in float32."""
    return Verifier.load(VerifierConfig(model=str(folder), device="cpu", dtype="float32"))


def _judge(verifier: Verifier, images: list[Image.Image], prompts: list[str]) -> list[Verdict]:
    return verifier.judge(images, prompts, Thresholds())


def _fidelity(verdicts: list[Verdict]) -> Scores:
    return np.array([verdict.fidelity for verdict in verdicts])


def _alignment(verdicts: list[Verdict]) -> Scores:
    return np.array([verdict.alignment for verdict in verdicts])
