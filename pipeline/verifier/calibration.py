"""How far a verifier's scores can be trusted, and from which on to accept: pure functions.

scores: (N,) float64 in [0, 1]; truth: (N,) bool. Nothing here knows of networks or pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.miniature.figures import wilson
from pipeline.types import Thresholds

Floats = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]

BINS = 15
LEAST_SCALE = 0.05  # of logits: a head that is worse than chance is flattened, never turned round
STEPS = 100  # of Newton's method, which takes about six
SURE = 1e-7  # scores nearer to 0 or 1 than float32 resolves
GRID = 64  # thresholds of each score that are tried
DECIMALS = 4  # of a threshold


# Scores that mean what they say


@dataclass(frozen=True)
class Scaling:
    """What calibration does to a head's logits: scale * logit + shift; temperature: 1 / scale."""

    scale: float = 1.0
    shift: float = 0.0

    @property
    def temperature(self) -> float:
        return 1 / self.scale

    def __call__(self, logits: Floats) -> Floats:
        return self.scale * logits + self.shift


def fit_scaling(logits: Floats, truth: Truth, *, with_shift: bool) -> Scaling:
    """The scaling under which the truth is likeliest; without shift it is temperature scaling.

    Newton's method on the cross-entropy, which is convex. A normal prior of width 1 around no
    change keeps the answer finite where the logits part the truth wholly.
    Source: Guo et al. 2017, section 4.2; with shift Platt 1999.
    """
    columns = [logits, np.ones_like(logits)] if with_shift else [logits]
    rows = np.stack(columns, axis=1)
    start = np.array([1.0, 0.0])[: rows.shape[1]]
    at = start.copy()

    def loss(here: Floats) -> float:
        z = rows @ here
        return float((np.logaddexp(0, z) - truth * z).sum() + ((here - start) ** 2).sum() / 2)

    for _ in range(STEPS):
        scores = sigmoid(rows @ at)
        gradient = rows.T @ (scores - truth) + (at - start)
        curvature = rows.T @ (rows * (scores * (1 - scores))[:, None]) + np.eye(len(at))
        step = np.linalg.solve(curvature, gradient)
        while loss(at - step) > loss(at) and np.abs(step).max() > 1e-12:
            step = step / 2
        at = at - step
        if np.abs(step).max() < 1e-10:
            break
    return Scaling(max(float(at[0]), LEAST_SCALE), float(at[1]) if with_shift else 0.0)


def sigmoid(logits: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -logits))


def logit(scores: Floats) -> Floats:
    """The inverse of the sigmoid, within what float32 can tell from 0 and 1."""
    bounded = np.clip(scores, SURE, 1 - SURE)
    return np.log(bounded) - np.log1p(-bounded)


def cross_entropy(scores: Floats, truth: Truth) -> float:
    """The mean of -log p(truth), in nats."""
    z = logit(scores)
    return float((np.logaddexp(0, z) - truth * z).mean())


# Do they?


@dataclass(frozen=True)
class Bin:
    """Scores that lie together: how many, their mean, and the share of which the truth is yes."""

    low: float
    high: float
    n: int
    score: float
    share: float


def reliability(
    scores: Floats, truth: Truth, bins: int = BINS, *, equal_mass: bool = False
) -> list[Bin]:
    """The bins that hold anything, from low scores to high.

    Of equal width, or with equal_mass of as equal numbers as can be; a score on the edge between
    two bins belongs to the upper one, and equal scores are parted by no edge.
    """
    edges = np.linspace(0, 1, bins + 1)
    if equal_mass:
        inner = np.sort(scores)[np.arange(1, bins) * len(scores) // bins]
        edges = np.concatenate([[0.0], np.unique(inner[inner > 0]), [1.0]])
    place = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, len(edges) - 2)
    found = []
    for index in range(len(edges) - 1):
        here = place == index
        if here.any():
            mean, share = float(scores[here].mean()), float(truth[here].mean())
            found.append(
                Bin(float(edges[index]), float(edges[index + 1]), int(here.sum()), mean, share)
            )
    return found


def ece(bins: list[Bin]) -> float:
    """Expected calibration error: the bins' mean distance of share and score, by their numbers.

    Source: Naeini et al. 2015; Guo et al. 2017 with 15 bins of equal width.
    """
    count = sum(each.n for each in bins)
    return sum(each.n * abs(each.share - each.score) for each in bins) / count


# Do they put the right above the wrong?


def auc(scores: Floats, truth: Truth) -> float | None:
    """The chance that a yes scores above a no, ties counting half; None where all agree."""
    if truth.all() or not truth.any():
        return None
    return float(_weighted_auc(scores, truth, np.ones((1, len(scores))))[0])


def auc_interval(
    scores: Floats, truth: Truth, groups: list[str], resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """The 95% interval of `auc`, by bootstrap over groups; None where there is no AUC.

    groups: N names; pictures of one base prompt are alike, so they are drawn together. Source: the
    percentile bootstrap over clusters, Efron and Tibshirani 1993.
    """
    if truth.all() or not truth.any():
        return None
    low, high = np.quantile(auc_resamples(scores, truth, groups, resamples, seed), [0.025, 0.975])
    return float(low), float(high)


def auc_resamples(
    scores: Floats, truth: Truth, groups: list[str], resamples: int = 1000, seed: int = 0
) -> Floats:
    """(R,) the AUC of each resample of the groups, without those in which all agree.

    Which resamples there are depends on truth, groups and seed alone: two scores of the same
    pictures can be compared resample by resample.
    """
    names, place = np.unique(np.array(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    found: list[Floats] = []
    at_once = max(1, 4_000_000 // len(scores))
    for first in range(0, resamples, at_once):
        many = min(at_once, resamples - first)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=many)
        weights = drawn[:, place].astype(np.float64)
        both = (weights[:, truth].sum(1) > 0) & (weights[:, ~truth].sum(1) > 0)
        found.append(_weighted_auc(scores, truth, weights[both]))
    return np.concatenate(found)


def _weighted_auc(scores: Floats, truth: Truth, weights: Floats) -> Floats:
    """(R,) the AUC under each row of (R, N) weights."""
    order = np.argsort(scores, kind="stable")
    ordered, yes = scores[order], truth[order]
    no_weights = np.where(yes, 0, weights[:, order])
    below = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(no_weights, axis=1)], axis=1)
    first = np.searchsorted(ordered, ordered[yes], side="left")
    last = np.searchsorted(ordered, ordered[yes], side="right")
    yes_weights = weights[:, order][:, yes]
    wins = (yes_weights * (below[:, first] + below[:, last]) / 2).sum(axis=1)
    return np.asarray(wins / (yes_weights.sum(axis=1) * below[:, -1]))


# From which scores on?


@dataclass(frozen=True)
class OperatingPoint:
    """Thresholds, and whether they reach what was asked of them where they were chosen."""

    thresholds: Thresholds
    reached: bool


def for_precision(
    fidelity: Floats, alignment: Floats, right: Truth, target: float, *, lower: bool = False
) -> OperatingPoint:
    """The thresholds that accept most among those of at least this precision.

    right: (N,), right in both. Precision is the share of accepted that are right; with lower, it is
    the lower end of its 95% interval (Wilson) that has to reach the target. Where nothing does, the
    most precise ones.
    """
    grid = _Grid(fidelity, alignment, right)
    reached = grid.accepted > 0
    measure = grid.lower if lower else grid.precision
    enough = reached & (measure >= target)
    wanted = f"precision of at least {target:g}"
    wanted += ", by the lower end of its 95% interval" if lower else ""
    if enough.any():
        best = np.lexsort((-measure[enough], -grid.accepted[enough]))[0]
        return grid.point(enough, int(best), wanted, reached=True)
    most = np.lexsort((-grid.accepted[reached], -grid.lower[reached]))[0]
    return grid.point(reached, int(most), f"{wanted}: not reached, the most precise", reached=False)


def for_acceptance(
    fidelity: Floats, alignment: Floats, right: Truth, target: float
) -> OperatingPoint:
    """The most precise thresholds among those that accept at least this share of the pictures."""
    grid = _Grid(fidelity, alignment, right)
    enough = grid.accepted >= target * len(right)
    best = np.lexsort((grid.accepted[enough], -grid.precision[enough]))[0]
    return grid.point(enough, int(best), f"acceptance of at least {target:g}", reached=True)


class _Grid:
    """What each pair of thresholds accepts, (I, J) of fidelity's and alignment's."""

    def __init__(self, fidelity: Floats, alignment: Floats, right: Truth) -> None:
        self._at = _thresholds(fidelity), _thresholds(alignment)
        by_fidelity = (fidelity[:, None] >= self._at[0]).astype(np.float64)  # N, I
        by_alignment = (alignment[:, None] >= self._at[1]).astype(np.float64)  # N, J
        self.accepted = by_fidelity.T @ by_alignment
        hits = (by_fidelity * right[:, None]).T @ by_alignment
        self.precision = hits / np.maximum(self.accepted, 1)
        shares = zip(hits.flat, self.accepted.flat, strict=True)
        lows = [wilson(int(hit), int(many))[0] for hit, many in shares]
        self.lower = np.array(lows).reshape(hits.shape)

    def point(self, among: Truth, place: int, chosen_by: str, *, reached: bool) -> OperatingPoint:
        """The place-th pair of those that are meant."""
        row, column = np.argwhere(among)[place]
        at = Thresholds(
            fidelity=float(self._at[0][row]),
            alignment=float(self._at[1][column]),
            chosen_by=chosen_by,
        )
        return OperatingPoint(at, reached)


def _thresholds(scores: Floats) -> Floats:
    """From one that all reach upwards; rounded down, so that the score itself still does."""
    steps = np.quantile(scores, np.linspace(0, 1, GRID), method="lower")
    return np.unique(np.floor(steps * 10**DECIMALS) / 10**DECIMALS)
