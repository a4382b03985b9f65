"""How far annotators agree on what several of them were asked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.bootstrap import Floats
from pipeline.labels import QUESTIONS, Question, Said
from pipeline.miniature.figures import kappa


@dataclass(frozen=True)
class Agreement:
    """Of two annotators on one question."""

    n: int  # pictures that both answered
    agreed: int  # of these, with the same answer
    kappa: float | None  # Cohen's; None where both give one same answer throughout, or n is 0


def agreement(one: Mapping[str, Said], other: Mapping[str, Said], question: Question) -> Agreement:
    """one, other: what each says, by picture. Source: Cohen 1960."""
    pairs = [
        (mine, theirs)
        for id in _common(one, other)
        if (mine := one[id].answer(question)) is not None
        and (theirs := other[id].answer(question)) is not None
    ]
    return Agreement(
        n=len(pairs),
        agreed=sum(mine == theirs for mine, theirs in pairs),
        kappa=kappa([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
        if pairs
        else None,
    )


def disagreements(one: Mapping[str, Said], other: Mapping[str, Said]) -> Iterator[str]:
    """The pictures to which they give different answers, in any order."""
    for id in _common(one, other):
        for question in QUESTIONS:
            answers = {one[id].answer(question), other[id].answer(question)}
            if answers == {True, False}:
                yield id
                break


def _common(one: Mapping[str, Said], other: Mapping[str, Said]) -> Iterator[str]:
    few, many = sorted((one, other), key=len)
    return (id for id in few if id in many)


def alpha(counts: Floats, values: Floats) -> float | None:
    """Krippendorff's alpha: 1 is agreement, 0 what chance would give.

    counts: (units, V), how many annotators gave each unit each value; a unit of fewer than two
    answers tells nothing. values: (V,); how far two are apart counts squared. None where there is
    nothing to compare, or all answers are the same.
    Source: Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), interval data.
    """
    counts = counts[counts.sum(axis=1) >= 2]
    pairs = counts[:, :, None] * (counts[:, None, :] - np.eye(len(values)))
    coincidences = (pairs / (counts.sum(axis=1) - 1)[:, None, None]).sum(axis=0)
    totals = coincidences.sum(axis=0)
    apart = (values[:, None] - values) ** 2
    by_chance = (np.outer(totals, totals) * apart).sum()
    if not by_chance:
        return None
    return float(1 - (totals.sum() - 1) * (coincidences * apart).sum() / by_chance)
