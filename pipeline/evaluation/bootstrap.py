"""Intervals by the percentile bootstrap over clusters.

Pictures of one prompt resemble each other, so that prompts are drawn with replacement, each with
all its pictures. Source: Efron and Tibshirani 1993, chapters 8 and 13.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

RESAMPLES: Final = 2000
SEED: Final = 20_260_401
FEWEST_PROMPTS: Final = 5  # fewer say nothing of their spread

_BLOCK = 4_000_000  # prompts drawn at once while resampling: 32 MB of them

Floats = npt.NDArray[np.float64]


def cluster_sums(clusters: npt.NDArray[np.intp], columns: Floats, count: int) -> Floats:
    """What each cluster's rows add up to: (count, k).

    clusters: (n,), whose each row is, in [0, count). columns: (n, k).
    """
    added = [np.bincount(clusters, column, count) for column in columns.T]
    return np.column_stack(added).astype(float)


def resampled(sums: Floats, resamples: int, seed: int | Sequence[int]) -> Floats:
    """What as many clusters, drawn with replacement, add up to: (resamples, k).

    sums: (clusters, k). The same clusters are drawn for the same seed, whatever they hold.
    """
    rng, clusters = np.random.default_rng(seed), len(sums)
    block = max(1, _BLOCK // clusters)
    parts = []
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        parts.append(times @ sums)
    return np.concatenate(parts)


def interval(values: Floats) -> tuple[float, float] | tuple[None, None]:
    """The middle 95%; None where some values are none."""
    if not np.isfinite(values).all():
        return None, None
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return low, high
