"""Questions that a verifier is asked in training only: what shows, what is wrong with a text.

Yes or no alone teaches a small network too little. What a picture shows is known from the texts
that fit it, what a false text has wrong from how it was made, and faults from the labels' reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from pipeline.labels import REASONS
from pipeline.training.denoising import Batch
from pipeline.training.verifier_labels import Judged
from pipeline.training.verifier_negatives import Wordings

NOT_KNOWN = -1
"""The target of a question to which nobody knows the answer."""
ANSWERS = 3.0
"""How much more a yes-or-no answer weighs than a value: most of them are no, and easily said."""


@dataclass(frozen=True)
class Questions:
    """What is asked. mismatches, faults: those of the labels' reasons that are words of the list
    and speak of the text, or of the hand."""

    known: Wordings
    mismatches: tuple[str, ...]
    faults: tuple[str, ...]

    def shown(self, text: str) -> list[int]:
        """The place of each attribute's value in a picture that shows this text."""
        said = self.known.said(text)
        return [
            values.index(said[name]) if name in said else NOT_KNOWN
            for name, values in self.known.values.items()
        ]

    def wrong(self, text: str, shown: Sequence[int], reasons: Sequence[str] | None) -> list[float]:
        """Of each attribute whether the text has it wrong, then each of the mismatches.

        shown: what the picture shows, where that is known. reasons: why the text is labelled
        wrong, as `why` says; None also where it was made wrong by changing its values.
        """
        answers: list[float] = []
        for place, (name, values) in enumerate(self.known.values.items()):
            claims = self.known.claims(text, name)
            if f"wrong_{name}" in (reasons or ()):
                answers.append(1.0)
            elif not claims or reasons == ():
                answers.append(0.0)
            elif len(claims) == 1 and shown[place] != NOT_KNOWN:
                answers.append(float(values.index(claims[0]) != shown[place]))
            else:
                answers.append(NOT_KNOWN)
        if reasons is None:
            return answers + [NOT_KNOWN] * len(self.mismatches)
        return answers + [float(each in reasons) for each in self.mismatches]

    def why(self, item: Judged) -> tuple[str, ...] | None:
        """Why a picture does not show its text; (): it does, None: nobody said."""
        if item.alignment:
            return ()
        words = {*self.mismatches, *(f"wrong_{name}" for name in self.known.values)}
        return tuple(reason for reason in item.reasons if reason in words) or None

    def faulty(self, item: Judged) -> list[float]:
        """Whether each fault shows."""
        if item.fidelity is True:
            return [0.0] * len(self.faults)
        if item.fidelity is None or not set(item.reasons) & set(self.faults):
            return [NOT_KNOWN] * len(self.faults)
        return [float(fault in item.reasons) for fault in self.faults]


def questions(known: Wordings, items: Iterable[Judged]) -> Questions:
    """Those that these labels answer."""
    said = {reason for item in items for reason in item.reasons}
    wrong = {f"wrong_{name}" for name in known.values}
    return Questions(
        known,
        tuple(r for r, on in REASONS.items() if on == "alignment" and r in said - wrong),
        tuple(r for r, on in REASONS.items() if on == "fidelity" and r in said),
    )


class Guide(nn.Module):
    """One layer that answers the questions from what the verifier's heads read; it is not saved."""

    def __init__(self, features: int, asked: Questions) -> None:
        super().__init__()
        values = [len(each) for each in asked.known.values.values()]
        self._values = values
        self._sizes = [sum(values), len(values) + len(asked.mismatches), len(asked.faults)]
        self.answers = nn.Linear(features, sum(self._sizes))

    def forward(self, features: Tensor, batch: Batch, pair: Tensor, picture: Tensor) -> Tensor:
        """The loss of (C, 2D) features, of clauses; pair, picture as in a batch of Examples."""
        shown, wrong, faulty = self.answers(features).float().split(self._sizes, dim=1)
        whose = picture[pair]
        total = _yes_or_no(faulty, batch["faulty"][whose])
        # A clause by itself may be right where its text is wrong, so the worst one answers.
        texts = wrong.new_zeros(len(picture), wrong.shape[1])
        where = pair[:, None].expand_as(wrong)
        texts = texts.scatter_reduce(0, where, wrong, "amax", include_self=False)
        total = total + _yes_or_no(texts, batch["wrong"])
        for place, scores in enumerate(shown.split(self._values, dim=1)):
            target = batch["shown"][whose, place]
            each = cross_entropy(scores, target, ignore_index=NOT_KNOWN, reduction="sum")
            count = (target != NOT_KNOWN).sum().clamp(min=1)
            total = total + each / count / len(self._values) / ANSWERS
        return ANSWERS * total


def _yes_or_no(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over the answers that are known; 0 if there are none."""
    known = targets != NOT_KNOWN
    each = binary_cross_entropy_with_logits(logits, targets.clamp(min=0), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)
