"""What a trained verifier is: its card, for people and for programs, and its operating point."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.evaluation.verifier import Decisions, Measured, Mistake, Ranking, Scored, Share
from pipeline.training.card import CARD, README
from pipeline.types import Frozen, ModelRef, Thresholds
from pipeline.verifier.operating_point import FILE as POINT

MISTAKES = "mistakes"  # the folder of their pictures
RELIABILITY = "reliability.png"


class PartSize(Frozen):
    pictures: int
    base_prompts: int


class LabelSet(Frozen):
    """Where labels came from. hash: of all that they say."""

    name: str
    labels: int
    hash: str


class Calibration(Frozen):
    """What was done to a head's logits, and the cross-entropy on the calibration part, in nats."""

    temperature: float
    shift: float
    before: float
    after: float
    n: int


class Validation(Frozen):
    """One look at the validation part.

    made_auc: of true texts against false ones that are made up. texts_auc: of alignment, with the
    false texts beside the labels: where few labels say no, theirs alone would decide by chance.
    """

    step: int
    fidelity_auc: float | None
    alignment_auc: float | None
    made_auc: float | None
    texts_auc: float | None
    loss: float  # cross-entropy of both heads, in nats

    @property
    def better(self) -> tuple[float, float]:
        """What grows: the mean of fidelity's AUC and that of all texts, then less loss."""
        known = [auc for auc in (self.fidelity_auc, self.texts_auc) if auc is not None]
        return (sum(known) / len(known) if known else 0.0), -self.loss


class Point(Frozen):
    """Thresholds that were chosen on the calibration part, and what they do on the test part."""

    thresholds: Thresholds
    reached: bool  # on the calibration part
    decisions: Decisions


class VerifierCard(Frozen):
    """Where a verifier comes from and how good it is. The first six: on the test part.

    Thresholds are chosen on the calibration part. made: the AUC of a picture's own text against
    another picture's ("swapped") and against itself with one attribute changed ("changed").
    """

    fidelity_auc: float | None
    alignment_auc: float | None
    ece: float | None  # the larger one of both scores', 15 bins of equal width
    precision: float | None
    recall: float | None
    acceptance: float | None

    thresholds: Thresholds
    reached: bool
    other_points: tuple[Point, ...]
    measured: Measured
    made: dict[str, float | None]
    calibration: dict[str, Calibration]
    mistakes: tuple[Mistake, ...]

    splits: dict[str, PartSize]
    label_sets: tuple[LabelSet, ...]
    annotators: dict[str, int]
    chosen: dict[str, int]
    disagreements: dict[str, int]
    ties: dict[str, int]

    base: ModelRef
    kind: str
    config: dict[str, Any]
    steps: int
    best_step: int
    validations: tuple[Validation, ...]
    losses: dict[str, float]
    pairs_per_s: float
    peak_memory_bytes: int
    device: str
    mixed_precision: str
    processes: int
    versions: dict[str, str]
    identity: str


@dataclass(frozen=True)
class TrainedVerifier:
    """A verifier in its folder. new: was anything trained in this call?"""

    folder: Path
    card: VerifierCard
    new: bool


def read_verifier_card(folder: Path) -> VerifierCard | None:
    """The card of a folder that is trained to its end. Raises InputError if it is broken."""
    path = folder / CARD
    if not path.exists():
        return None
    try:
        return VerifierCard.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{str(path)!r} is no card of a verifier: {reason}") from None


def write_verifier_card(card: VerifierCard, folder: Path) -> None:
    """The operating point, README.md, and last card.json: the training came to its end."""
    (folder / POINT).write_text(card.thresholds.model_dump_json(indent=2) + "\n", "utf-8")
    (folder / README).write_text(_readme(card), "utf-8")
    partial = folder / f".{CARD}.partial"
    partial.write_text(card.model_dump_json(indent=2) + "\n", "utf-8")
    partial.replace(folder / CARD)


def keep_mistakes(rows: Sequence[Scored], folder: Path) -> tuple[Mistake, ...]:
    """Copies their pictures beside the card."""
    from pipeline.training.verifier_labels import open_picture

    to = folder / MISTAKES
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    found = []
    for number, row in enumerate(rows, 1):
        kind = "rejected" if row.right else "accepted"
        name = f"{MISTAKES}/{number:02}-{kind}.png"
        open_picture(row.picture).save(folder / name)
        found.append(
            Mistake(
                kind=kind,
                picture=name,
                prompt=row.prompt,
                category=row.category,
                reasons=row.reasons,
                fidelity=round(row.fidelity_score, 4),
                alignment=round(row.alignment_score, 4),
            )
        )
    return tuple(found)


def _readme(card: VerifierCard) -> str:
    head = {"library_name": "transformers", "tags": ["vilt", "verifier", "hand-object-interaction"]}
    if card.base.weights.startswith("hub:"):
        head["base_model"] = card.base.name
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    return "\n\n".join(
        part
        for part in (
            f"---\n{front}\n---\n\n# A verifier: is the hand right, does it show the prompt?",
            _overall(card),
            _point(card),
            "## Can its scores be believed?\n\n"
            f"![score against the share that is right]({RELIABILITY})\n\n" + _calibration(card),
            _categories(card.measured),
            _faults(card.measured),
            _worst(card.mistakes),
            _made_of(card),
        )
        if part
    ) + "\n"  # fmt: skip


def _overall(card: VerifierCard) -> str:
    measured = card.measured
    rows = [
        ("fidelity, AUC", _auc(measured.fidelity)),
        ("alignment, AUC", _auc(measured.alignment)),
        ("own text against another picture's, AUC", _number(card.made.get("swapped"))),
        ("own text against one attribute changed, AUC", _number(card.made.get("changed"))),
        *_decision_rows(measured.decisions),
    ]
    return (
        f"On {measured.n:,} labelled pictures of base prompts that it never saw; intervals are 95%,"
        " of AUCs by bootstrap over base prompts, of shares by Wilson.\n\n" + _table("", rows)
    )


def _decision_rows(found: Decisions) -> list[tuple[str, str]]:
    return [
        ("precision: of the accepted, right in both", _share(found.precision)),
        ("recall: of the right, accepted", _share(found.recall)),
        ("acceptance", _share(found.acceptance)),
    ]


def _point(card: VerifierCard) -> str:
    missed = "" if card.reached else " This was **not reached** there."
    at = card.thresholds
    return (
        f"## Operating point\n\nFidelity from {at.fidelity:g} and alignment from {at.alignment:g}: "
        f"{at.chosen_by}, chosen on the calibration part.{missed} Runs take it from `{POINT}`, "
        f"unless `verifier.thresholds` says otherwise.\n\nOthers, chosen likewise:\n\n"
        f"{_others(card)}"
    )


def _others(card: VerifierCard) -> str:
    lines = ["| chosen for | fidelity | alignment | precision | recall | acceptance |"]
    lines.append("|---|---|---|---|---|---|")
    for point in card.other_points:
        done, at = point.decisions, point.thresholds
        shares = " | ".join(_share(each) for each in (done.precision, done.recall, done.acceptance))
        lines.append(f"| {at.chosen_by} | {at.fidelity:g} | {at.alignment:g} | {shares} |")
    return "\n".join(lines)


def _calibration(card: VerifierCard) -> str:
    found = {
        "fidelity": card.measured.fidelity_reliability,
        "alignment": card.measured.alignment_reliability,
    }
    lines = ["| score | ECE, equal width | ECE, equal numbers | temperature | shift |"]
    lines.append("|---|---|---|---|---|")
    for head, each in found.items():
        fit = card.calibration.get(head)
        if each and fit:
            lines.append(
                f"| {head} | {each.ece:.3f} | {each.ece_equal_mass:.3f} | {fit.temperature:.2f} | "
                f"{fit.shift:+.2f} |"
            )
    return "\n".join(lines) + "\n\n15 bins. Temperature and shift are folded into the heads."


def _categories(measured: Measured) -> str:
    if not measured.by_category:
        return ""
    lines = ["## By category", ""]
    lines += ["| category | n | fidelity, AUC | alignment, AUC | precision | recall | acceptance |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, group in measured.by_category.items():
        done = group.decisions
        shares = " | ".join(_share(each) for each in (done.precision, done.recall, done.acceptance))
        aucs = f"{_number(group.fidelity_auc)} | {_number(group.alignment_auc)}"
        lines.append(f"| {_cell(name)} | {group.n} | {aucs} | {shares} |")
    return "\n".join(lines)


def _faults(measured: Measured) -> str:
    rows = [(_cell(name), _share(share)) for name, share in measured.by_fault.items()]
    return _table("## By fault: the share of such pictures that is rejected", rows) if rows else ""


def _worst(found: Sequence[Mistake]) -> str:
    if not found:
        return ""
    lines = ["## Its worst mistakes", "", "| picture | it was | prompt | labels | scores |"]
    lines.append("|---|---|---|---|---|")
    for each in found:
        said = _cell(", ".join(each.reasons) or ("right" if each.kind == "rejected" else "wrong"))
        scores = f"{each.fidelity:.2f}, {each.alignment:.2f}"
        lines.append(
            f"| ![{each.kind}]({each.picture}) | {each.kind} | {_cell(each.prompt)} | {said} | "
            f"{scores} |"
        )
    return "\n".join(lines) + "\n\nScores: fidelity, alignment."


def _made_of(card: VerifierCard) -> str:
    loop = card.config["loop"]
    parts = (
        f"{name} {size.pictures:,} of {size.base_prompts:,} base prompts"
        for name, size in card.splits.items()
    )
    rows = [
        ("base", f"`{card.base.name}` ({card.kind}), weights `{card.base.weights}`"),
        ("steps", f"{card.steps:,}, the weights of step {card.best_step:,} kept"),
        ("batch", f"{loop['batch_size']} pictures, learning rate {loop['learning_rate']:g}"),
        ("pictures", "; ".join(parts)),
        ("labels", "; ".join(f"{s.name}: {s.labels:,}, `{s.hash}`" for s in card.label_sets)),
        ("annotators", ", ".join(f"{name} {n:,}" for name, n in card.annotators.items())),
        (
            "labelled because",
            ", ".join(f"{k or 'not known'} {n:,}" for k, n in card.chosen.items()),
        ),
        ("disagreements", _by_head(card.disagreements)),
        ("ties, left out", _by_head(card.ties)),
        ("speed", f"{card.pairs_per_s:.1f} pairs/s on {card.processes} x {card.device}"),
        ("peak memory", f"{card.peak_memory_bytes / 2**20:,.0f} MiB"),
        ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items())),
    ]
    return _table("## How it was made", rows)


def _by_head(counts: dict[str, int]) -> str:
    return ", ".join(f"{head} {count:,}" for head, count in counts.items())


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([*([title, ""] if title else []), "|  |  |", "|---|---|", *lines])


def _cell(text: str) -> str:
    """Text from elsewhere within a table."""
    flat = " ".join(text.split()).replace("\\", "\\\\")
    for mark in "|<>[]`*_":
        flat = flat.replace(mark, f"\\{mark}")
    return flat[:200]


def _auc(found: Ranking) -> str:
    if found.auc is None:
        return "not defined"
    return f"{found.auc:.3f} ({found.low:.3f} to {found.high:.3f}), n = {found.n:,}"


def _share(found: Share) -> str:
    if found.value is None:
        return "not defined"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f}), n = {found.n:,}"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"
