"""What people, or a judge, say of a picture and its prompt: the truth that verifiers learn from."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, StringConstraints

from pipeline.types import Frozen, Id

Annotator = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
"""Becomes a part of keys: at most 32 of a-z, 0-9, '_' and '-'."""

Question = Literal["fidelity", "alignment"]
QUESTIONS: tuple[Question, ...] = ("fidelity", "alignment")

Chosen = Literal["", "random", "unsure", "overlap", "grid"]
"""Why a picture came to be labelled: by chance, since the verifier is unsure of it, since another
annotator had labelled it, or in a sweep over a grid. "": not known. A share of all pictures can be
estimated from the random ones alone."""

REASONS: dict[str, Question] = {
    "extra_finger": "fidelity",
    "missing_finger": "fidelity",
    "fused_fingers": "fidelity",
    "floating_finger": "fidelity",
    "other_fault": "fidelity",
    "wrong_object": "alignment",
    "wrong_pose": "alignment",
    "wrong_color": "alignment",
    "out_of_reach": "alignment",
    "other_mismatch": "alignment",
}
"""What can be wrong, and the question that it answers with no; the miniature's words, and two for
the rest."""


class Said(NamedTuple):
    """What one annotator says of one picture."""

    fidelity: bool | None = None
    alignment: bool | None = None
    reasons: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether both questions are answered."""
        return self.fidelity is not None and self.alignment is not None

    @property
    def begun(self) -> bool:
        """Whether one of them is answered, and the other one is not."""
        return (self.fidelity is None) != (self.alignment is None)

    def answer(self, question: Question) -> bool | None:
        return self.fidelity if question == "fidelity" else self.alignment


class Label(Frozen):
    """One line of a label set. Of several by one annotator for one picture, the last counts.

    fidelity: is the hand right? alignment: does the picture show what the prompt says? None: not
    said; with both None, what was said before is taken back.
    """

    id: Id  # of the proposal, or of whatever else the picture is
    image: Annotated[str, Field(min_length=1)]  # runs/... in the store, or a path beside the file
    prompt: Annotated[str, Field(min_length=1)]
    base: str  # the base prompt: pictures of one are never parted between training and test
    category: str = ""
    fidelity: bool | None
    alignment: bool | None
    reasons: tuple[str, ...] = ()  # what is wrong, in the words of a list
    annotator: Annotator
    at: str  # ISO 8601, UTC
    chosen: Chosen = ""

    @property
    def said(self) -> Said:
        return Said(self.fidelity, self.alignment, self.reasons)


def now() -> str:
    """The time as labels hold it: of one length, so that it sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def last_said(labels: Iterable[Label]) -> dict[tuple[str, str], Label]:
    """What counts, by annotator and picture, without what was taken back."""
    last: dict[tuple[str, str], Label] = {}
    for label in labels:
        key = label.annotator, label.id
        last.pop(key, None)
        if label.fidelity is not None or label.alignment is not None:
            last[key] = label
    return last
