"""How well second opinions tell right pictures from wrong ones, on pictures that were labelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.verifier import Ranking
from pipeline.training.verifier_labels import open_picture
from pipeline.types import Frozen, Usage
from pipeline.verifier.calibration import auc, auc_interval
from pipeline.verifier.opinions import Heard, Opinion, hear_all

if TYPE_CHECKING:
    from pipeline.training.verifier_labels import Judged

AT_ONCE = 64  # pictures that are open


class OpinionMeasured(Frozen):
    """One score's AUC for each of the verifier's questions, where it was heard at all."""

    fidelity: Ranking
    alignment: Ranking


class OpinionsMeasured(Frozen):
    """scores: by name. unheard: pictures of which an opinion gave no score, by opinion."""

    scores: dict[str, OpinionMeasured]
    unheard: dict[str, int]
    usage: Usage


def measure_opinions(opinions: Sequence[Opinion], items: Sequence[Judged]) -> OpinionsMeasured:
    """What the opinions say of labelled pictures, held against the labels.

    Raises what stops an opinion, such as an endpoint that stays away.
    """
    heard: list[Heard] = []
    for first in range(0, len(items), AT_ONCE):
        some = items[first : first + AT_ONCE]
        pictures = [open_picture(item.picture) for item in some]
        heard += hear_all(opinions, pictures, [item.prompt for item in some])
    for each in heard:
        if each.error:
            raise each.error
    names = dict.fromkeys(name for each in heard for name in each.scores)
    unheard = dict.fromkeys((name for each in heard for name in each.unheard), 0)
    return OpinionsMeasured(
        scores={
            name: OpinionMeasured(
                fidelity=_ranking(name, "fidelity", items, heard),
                alignment=_ranking(name, "alignment", items, heard),
            )
            for name in names
        },
        unheard={name: sum(name in each.unheard for each in heard) for name in unheard},
        usage=sum((each.usage for each in heard), Usage()),
    )


def _ranking(name: str, head: str, items: Sequence[Judged], heard: Sequence[Heard]) -> Ranking:
    known = [
        (each.scores[name], getattr(item, head), item.base)
        for item, each in zip(items, heard, strict=True)
        if name in each.scores and getattr(item, head) is not None
    ]
    scores = np.array([score for score, _, _ in known], np.float64)
    truth = np.array([answer for _, answer, _ in known], np.bool_)
    interval = auc_interval(scores, truth, [base for _, _, base in known]) if known else None
    low, high = interval or (None, None)
    found = auc(scores, truth) if known else None
    return Ranking(auc=found, low=low, high=high, n=len(known), yes=int(truth.sum()))
