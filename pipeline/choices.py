"""What people say of two pictures of one prompt, not knowing who drew them: which one is better."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from pipeline.labels import Annotator
from pipeline.types import Frozen, Id, RunName

Answer = Literal["left", "tie", "right"]
ANSWERS: tuple[Answer, ...] = ("left", "tie", "right")

Question = Literal["fidelity", "alignment", "overall"]
ASKED: dict[Question, str] = {
    "fidelity": "Which is drawn better?",  # is the hand right?
    "alignment": "Which shows better what the text says?",
    "overall": "Which is better, all in all?",
}
"""In the order in which they are asked."""

QUESTIONS: tuple[Question, ...] = tuple(ASKED)

MOST_PAIRS = 10_000  # of a study


class Side(Frozen):
    """One picture of a pair, and who drew it."""

    arm: str
    run: RunName
    id: Id  # of the proposal


class Pair(Frozen):
    """Two pictures to compare. They are of this prompt and of one seed, unless it is a check."""

    id: Id
    prompt: Annotated[str, Field(min_length=1)]
    one: Side
    other: Side
    check: bool = False  # the other one is of another prompt, so that its alignment is known


class Request(Frozen):
    """What a study was made from: the same request finds the same study again."""

    arms: dict[str, RunName]  # by label; strengths are told against the first
    prompts: Id | None = None  # the digest of those that it is confined to
    pairs: Annotated[int, Field(ge=1, le=MOST_PAIRS)]
    check_share: Annotated[float, Field(ge=0.0, le=0.5)]
    seed: int


class Study(Frozen):
    """What every annotator is asked, frozen before the first one is."""

    request: Request
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1)]
    alike: int = 0  # pairs of one and the same picture, which nobody is asked about
    notes: tuple[str, ...] = ()  # what it lacks of what was asked for


class Answers(NamedTuple):
    """What one annotator says of one pair, as they see it."""

    fidelity: Answer | None = None
    alignment: Answer | None = None
    overall: Answer | None = None

    @property
    def whole(self) -> bool:
        return None not in self

    @property
    def begun(self) -> bool:
        """Some questions are answered, and some are not."""
        return None in self and any(self)

    def answer(self, question: Question) -> Answer | None:
        return self[QUESTIONS.index(question)]

    def answered(self, question: Question, answer: Answer) -> "Answers":
        """With this answer in the place of an earlier one."""
        return Answers(**{**self._asdict(), question: answer})


class Choice(Frozen):
    """One line of a study. Of several by one annotator for one pair, the last counts.

    None: not said; with all None, what was said before is taken back.
    """

    pair: Id
    left: Id  # the picture that was shown there
    right: Id
    fidelity: Answer | None
    alignment: Answer | None
    overall: Answer | None
    annotator: Annotator
    at: str  # ISO 8601, UTC

    @property
    def answers(self) -> Answers:
        return Answers(self.fidelity, self.alignment, self.overall)
