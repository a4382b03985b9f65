"""Strengths from comparisons: the model of Bradley and Terry (1952), with Davidson's ties (1970).

Two things of log-strengths a and b are compared. Davidson has the first one win, tie or lose in
proportion to exp(a), nu exp((a + b) / 2) and exp(b), where nu says how ready people are to call a
tie. So a tie speaks for both alike, and a - b are the log-odds of winning where there is none.

Source: Davidson, R. R., "On extending the Bradley-Terry model to accommodate ties in paired
comparison experiments", Journal of the American Statistical Association 65 (1970).
"""

from itertools import combinations

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.bootstrap import Floats

_HALF = 0.5
"""Added to every count, so that who always wins is not infinitely strong (Anscombe 1956)."""

_STEPS = 200


def strengths(counts: Floats, things: int, compared: npt.NDArray[np.bool_]) -> Floats:
    """Log-strengths of maximum likelihood, the first thing's being 0: (R, things).

    counts: (R, P, 3), R times anew: of the P pairs `combinations(range(things), 2)`, how often the
    first one of it won, tied, and lost. compared: (P,), which of these pairs are compared at all;
    they must connect all things. Solved by Newton's method: the log-likelihood is concave.
    """
    design = _design(things)[compared].reshape(-1, things)  # (3P, things)
    outer = np.einsum("ak,al->akl", design, design).reshape(len(design), -1)
    seen = counts[:, compared] + _HALF
    n = seen.sum(axis=2, keepdims=True)
    at = np.zeros((len(counts), things))
    for _ in range(_STEPS):
        q = _softmax((at @ design.T).reshape(seen.shape))
        gradient = (seen - n * q).reshape(len(at), -1) @ design
        mean = np.einsum("rpa,pak->rpk", q, design.reshape(*seen.shape[1:], things))
        curvature = ((n * q).reshape(len(at), -1) @ outer).reshape(len(at), things, things)
        curvature -= np.einsum("rpk,rpl->rkl", n * mean, mean)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        longest = np.abs(step).max(axis=1, keepdims=True)
        at += step / np.maximum(longest, 1)  # a long step may overshoot
        if longest.max() < 1e-9:
            break
    return np.column_stack([np.zeros(len(at)), at[:, :-1]])


def connected(things: int, compared: npt.NDArray[np.bool_]) -> bool:
    """Whether all things are compared with one another, directly or by way of others."""
    near = np.eye(things)
    for (one, other), there in zip(combinations(range(things), 2), compared, strict=True):
        near[one, other] = near[other, one] = there
    return bool((np.linalg.matrix_power(near, things) > 0).all())


def _design(things: int) -> Floats:
    """(P, 3, things): the exponents above, by the strengths of all but the first, and by log nu."""
    rows = []
    for one, other in combinations(range(things), 2):
        wins, loses = np.zeros(things + 1), np.zeros(things + 1)
        wins[one] = loses[other] = 1
        tie = (wins + loses) / 2
        tie[things] = 1
        rows.append([wins[1:], tie[1:], loses[1:]])
    return np.array(rows)


def _softmax(u: Floats) -> Floats:
    e = np.exp(u - u.max(axis=2, keepdims=True))
    return np.asarray(e / e.sum(axis=2, keepdims=True))
