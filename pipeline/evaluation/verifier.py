"""How good a verifier is, on pictures of which people or a judge have said what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.miniature.figures import wilson
from pipeline.types import Frozen, Thresholds
from pipeline.verifier.calibration import Bin, Floats, Truth, auc, auc_interval, ece, reliability

HEADS = ("fidelity", "alignment")
WORST = 6  # mistakes of each kind that are shown
FEWEST = 5  # pictures of a category or fault that get figures of their own


@dataclass(frozen=True)
class Scored:
    """A labelled picture with its scores. fidelity, alignment: the truth; None where unsaid."""

    picture: Path
    prompt: str
    base: str
    category: str
    reasons: tuple[str, ...]
    fidelity: bool | None
    alignment: bool | None
    fidelity_score: float
    alignment_score: float

    @property
    def right(self) -> bool | None:
        """In both; None where that cannot be told."""
        if self.fidelity is False or self.alignment is False:
            return False
        return None if self.fidelity is None or self.alignment is None else True

    def accepted(self, at: Thresholds) -> bool:
        return self.fidelity_score >= at.fidelity and self.alignment_score >= at.alignment


class Share(Frozen):
    """hits of n, with the 95% interval after Wilson; value: None where n is 0."""

    hits: int
    n: int
    value: float | None
    low: float
    high: float


class Ranking(Frozen):
    """The AUC of one score; the interval is 95%, by bootstrap over base prompts."""

    auc: float | None  # None: all answers are the same
    low: float | None = None
    high: float | None = None
    n: int
    yes: int


class Place(Frozen):
    """One bin of a reliability diagram."""

    low: float
    high: float
    n: int
    score: float  # mean
    share: float  # of which the truth is yes


class Reliability(Frozen):
    """Calibration of one score: 15 bins of equal width, and of equal numbers."""

    ece: float
    ece_equal_mass: float
    bins: tuple[Place, ...]  # of equal width
    bins_equal_mass: tuple[Place, ...]


class Decisions(Frozen):
    """What the thresholds do. precision: of the accepted, those right in both; recall: of those
    right in both, the accepted; acceptance: of all."""

    precision: Share
    recall: Share
    acceptance: Share


class Group(Frozen):
    """A category's part of the figures."""

    n: int
    fidelity_auc: float | None
    alignment_auc: float | None
    decisions: Decisions


class Mistake(Frozen):
    """A picture that was accepted though wrong, or rejected though right."""

    kind: str  # "accepted" or "rejected"
    picture: str  # the file beside the card
    prompt: str
    category: str
    reasons: tuple[str, ...]
    fidelity: float
    alignment: float


class Measured(Frozen):
    """All figures of one verifier on one set of pictures."""

    n: int
    fidelity: Ranking
    alignment: Ranking
    fidelity_reliability: Reliability | None  # None: no label says anything of it
    alignment_reliability: Reliability | None
    decisions: Decisions
    by_category: dict[str, Group]
    by_fault: dict[str, Share]  # of the pictures with that fault, those that are rejected

    @property
    def ece(self) -> float | None:
        """The larger one of both scores', with 15 bins of equal width."""
        both = (self.fidelity_reliability, self.alignment_reliability)
        return max((each.ece for each in both if each), default=None)


def measure(rows: Sequence[Scored], at: Thresholds) -> Measured:
    """All figures on these pictures. Decisions are counted where both answers are known, or one of
    them is no."""
    categories = sorted({row.category for row in rows if row.category})
    faults = sorted({reason for row in rows for reason in row.reasons})
    return Measured(
        n=len(rows),
        fidelity=_ranking(rows, "fidelity"),
        alignment=_ranking(rows, "alignment"),
        fidelity_reliability=_reliability(rows, "fidelity"),
        alignment_reliability=_reliability(rows, "alignment"),
        decisions=decisions(rows, at),
        by_category={
            name: _group(some, at)
            for name in categories
            if len(some := [row for row in rows if row.category == name]) >= FEWEST
        },
        by_fault={
            name: _share(not row.accepted(at) for row in some)
            for name in faults
            if len(some := [row for row in rows if name in row.reasons]) >= FEWEST
        },
    )


def decisions(rows: Sequence[Scored], at: Thresholds) -> Decisions:
    known = [(row.accepted(at), row.right) for row in rows if row.right is not None]
    return Decisions(
        precision=_share(bool(right) for accepted, right in known if accepted),
        recall=_share(accepted for accepted, right in known if right),
        acceptance=_share(accepted for accepted, _ in known),
    )


def arrays(rows: Sequence[Scored], head: str) -> tuple[Floats, Truth]:
    """The scores and the truth of one head, of those rows that say it."""
    said = [row for row in rows if getattr(row, head) is not None]
    values = [getattr(row, f"{head}_score") for row in said]
    return np.array(values, np.float64), np.array([getattr(row, head) for row in said], np.bool_)


def mistakes(rows: Sequence[Scored], at: Thresholds, most: int = WORST) -> list[Scored]:
    """The worst: accepted wrong ones that scored highest, then rejected right ones, lowest first.

    How high: by the score that says yes where the truth is no.
    """
    accepted = [row for row in rows if row.right is False and row.accepted(at)]
    rejected = [row for row in rows if row.right and not row.accepted(at)]
    accepted.sort(key=lambda row: (-_wrongness(row), row.picture.name))
    rejected.sort(key=lambda row: (min(row.fidelity_score, row.alignment_score), row.picture.name))
    return accepted[:most] + rejected[:most]


def _wrongness(row: Scored) -> float:
    """The highest score that says yes where the truth is no."""
    wrong = [getattr(row, f"{head}_score") for head in HEADS if getattr(row, head) is False]
    return float(max(wrong))


def _ranking(rows: Sequence[Scored], head: str) -> Ranking:
    scores, truth = arrays(rows, head)
    groups = [row.base for row in rows if getattr(row, head) is not None]
    interval = auc_interval(scores, truth, groups) if len(scores) else None
    low, high = interval or (None, None)
    found = auc(scores, truth) if len(scores) else None
    return Ranking(auc=found, low=low, high=high, n=len(scores), yes=int(truth.sum()))


def _reliability(rows: Sequence[Scored], head: str) -> Reliability | None:
    scores, truth = arrays(rows, head)
    if not len(scores):
        return None
    width, mass = reliability(scores, truth), reliability(scores, truth, equal_mass=True)
    return Reliability(
        ece=ece(width), ece_equal_mass=ece(mass), bins=_places(width), bins_equal_mass=_places(mass)
    )


def _places(bins: Sequence[Bin]) -> tuple[Place, ...]:
    return tuple(
        Place(low=each.low, high=each.high, n=each.n, score=each.score, share=each.share)
        for each in bins
    )


def _group(rows: Sequence[Scored], at: Thresholds) -> Group:
    found = {head: auc(*pair) if len((pair := arrays(rows, head))[0]) else None for head in HEADS}
    return Group(
        n=len(rows),
        fidelity_auc=found["fidelity"],
        alignment_auc=found["alignment"],
        decisions=decisions(rows, at),
    )


def _share(values: Iterable[bool]) -> Share:
    each = list(values)
    hits, n = sum(each), len(each)
    low, high = wilson(hits, n)
    return Share(hits=hits, n=n, value=hits / n if n else None, low=low, high=high)
