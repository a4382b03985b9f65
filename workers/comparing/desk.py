"""One annotator's desk of pairs: three questions about each, one after the other."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from pipeline.choices import QUESTIONS, Answer, Answers, Choice, Question
from pipeline.errors import InputError
from pipeline.evaluation.pairing import Turn
from workers.people.desk import Desk, Progress

AHEAD = 2  # pairs whose pictures the browser loads before they are asked for


@dataclass(frozen=True)
class View:
    """What the page for one pair shows. turn: None if there is nothing left."""

    turn: Turn | None
    answers: Answers
    due: Question | None  # what the arrow keys answer
    ahead: tuple[Turn, ...]
    progress: Progress
    can_undo: bool
    note: str = ""


class ChoiceDesk(Desk[Turn, Answers, Choice]):
    """Pairs to compare."""

    kind = "pair"
    nothing = Answers()

    def __init__(
        self,
        turns: Sequence[Turn],
        earlier: Iterable[Choice],
        *,
        annotator: str,
        append: Callable[[list[Choice]], None],
    ) -> None:
        self._annotator = annotator
        self._with: dict[str, list[Turn]] = {}  # the turns that show a picture
        for turn in turns:
            for side in (turn.left, turn.right):
                self._with.setdefault(side.id, []).append(turn)
        super().__init__(turns, earlier, append)

    def _line(self, item: Turn, said: Answers, at: str, chosen: str) -> Choice:
        return Choice(
            pair=item.id,
            left=item.left.id,
            right=item.right.id,
            annotator=self._annotator,
            at=at,
            **said._asdict(),
        )

    def _read(self, line: Choice) -> tuple[str, Answers]:
        return line.pair, line.answers

    def view(
        self, pair_id: str | None = None, note: str = "", after: Question | None = None
    ) -> View:
        """The pair of this id, or the next one that is open.

        after: the question that was just answered, so that the next one is due, even if another
        page answered that meanwhile: the keys to come are for this pair.
        """
        with self._lock:
            turn = self._chosen(pair_id)
            answers = self.said(turn.id) if turn else Answers()
            left_open = (q for q in QUESTIONS if answers.answer(q) is None)
            following = QUESTIONS[QUESTIONS.index(after) + 1 :] if after else ()
            ahead = (each for each in self._open() if each != turn)
            return View(
                turn=turn,
                answers=answers,
                due=next(iter(following), next(left_open, None)),
                ahead=tuple(islice(ahead, AHEAD)),
                progress=self.progress,
                can_undo=self.can_undo,
                note=note or self._tell_news(),
            )

    def answer(self, pair_id: str, question: Question, answer: Answer) -> None:
        with self._lock:
            self._say({pair_id: self.said(pair_id).answered(question, answer)})

    def pictures_of(self, pair_id: str) -> list[str]:
        """Raises InputError if the page has no such pair."""
        turn = self._item(pair_id)
        return [turn.left.id, turn.right.id]

    def run_of(self, picture_id: str) -> str:
        """Where a picture lies. Raises InputError if no pair has it."""
        for turn in self._with.get(picture_id, ()):
            return turn.left.run if turn.left.id == picture_id else turn.right.run
        raise InputError(f"no picture {picture_id!r} on this page")

    def picture_gone(self, picture_id: str, why: str) -> None:
        """All pairs that show it come no more."""
        for turn in self._with[picture_id]:
            self.gone(turn.id, f"has a picture that {why}")
