"""The figures of an evaluation, as pure functions of counts."""

from __future__ import annotations

import math
from collections.abc import Sequence


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share, after Wilson 1927."""
    if count == 0:
        return 0.0, 1.0
    z = 1.96
    p = hits / count
    middle = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    whole = 1 + z * z / count
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def share(values: Sequence[bool]) -> dict[str, float]:
    """How many of the values are true, as a share with its interval."""
    hits, count = sum(values), len(values)
    low, high = wilson(hits, count)
    return {
        "share": round(hits / max(count, 1), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": count,
    }


def kappa(one: Sequence[bool], other: Sequence[bool]) -> float | None:
    """Cohen's kappa of two yes-or-no raters; None where both give one same answer throughout."""
    n = len(one)
    agreed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    p, q = sum(one) / n, sum(other) / n
    by_chance = p * q + (1 - p) * (1 - q)
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)
