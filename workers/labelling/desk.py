"""One annotator's desk of pictures: whether hand and text are right, by itself or in a grid."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

from pipeline.errors import InputError
from pipeline.evaluation.agreement import Agreement, agreement, disagreements
from pipeline.labels import QUESTIONS, REASONS, Chosen, Label, Question, Said
from workers.labelling.queue import Picture, Place
from workers.people.desk import Desk, Progress

AHEAD = 3  # pictures that the browser loads before they are asked for
SWEEP = 100  # pictures of a grid

Opinions = Mapping[str, Mapping[str, Said]]
"""What each other annotator says, by picture."""


@dataclass(frozen=True)
class View:
    """What the page for one picture shows. picture: None if there is nothing left."""

    picture: Picture | None
    said: Said
    last: tuple[Picture, Said] | None  # the picture before, if one key spoke of it alone
    ahead: tuple[Picture, ...]
    progress: Progress
    agreements: Mapping[str, Mapping[Question, Agreement]]  # by the other annotator
    can_undo: bool
    note: str = ""


class LabelDesk(Desk[Place, Said, Label]):
    """Pictures to label."""

    kind = "picture"
    nothing = Said()

    def __init__(
        self,
        places: Sequence[Place],
        earlier: Iterable[Label],
        others: Opinions,
        *,
        annotator: str,
        image_key: Callable[[str], str],
        append: Callable[[list[Label]], None],
    ) -> None:
        """image_key: of a picture's id. The rest is a Desk's."""
        self._annotator, self._image_key = annotator, image_key
        self.others = others
        super().__init__(places, earlier, append)

    def _line(self, item: Place, said: Said, at: str, chosen: str) -> Label:
        return Label(
            id=item.id,
            image=self._image_key(item.id),
            prompt=item.picture.prompt,
            base=item.picture.base,
            category=item.picture.category,
            fidelity=said.fidelity,
            alignment=said.alignment,
            reasons=said.reasons,
            annotator=self._annotator,
            at=at,
            chosen=cast(Chosen, chosen) or item.chosen,
        )

    def _read(self, line: Label) -> tuple[str, Said]:
        nothing = line.fidelity is None and line.alignment is None
        return line.id, Said() if nothing else line.said

    # Looking

    def view(self, picture_id: str | None = None, note: str = "") -> View:
        """The picture of this id, or the next one that is open."""
        with self._lock:
            chosen = self._chosen(picture_id)
            picture = chosen.picture if chosen else None
            ahead = (place.picture for place in self._open() if place != chosen)
            return View(
                picture=picture,
                said=self.said(picture.id) if picture else Said(),
                last=self._last(picture),
                ahead=tuple(islice(ahead, AHEAD)),
                progress=self.progress,
                agreements={
                    name: {q: agreement(self._said, theirs, q) for q in QUESTIONS}
                    for name, theirs in sorted(self.others.items())
                },
                can_undo=self.can_undo,
                note=note or self._tell_news(),
            )

    def _last(self, now: Picture | None) -> tuple[Picture, Said] | None:
        ids = self._steps[-1].ids if self._steps else []
        last = self._item(ids[0]).picture if len(ids) == 1 else None
        return None if last is None or last == now else (last, self.said(last.id))

    def picture(self, picture_id: str) -> Picture:
        """Raises InputError if the page has no such picture."""
        return self._item(picture_id).picture

    def to_sweep(self) -> list[Picture]:
        """The next pictures whose fidelity is open."""
        with self._lock:
            found = (
                place.picture for place in self._open() if self.said(place.id).fidelity is None
            )
            return list(islice(found, SWEEP))

    def disputed(self, most: int) -> list[tuple[Picture, dict[str, Said]]]:
        """Pictures of which another annotator says otherwise, and what all say of them."""
        with self._lock:
            ids = {
                id for theirs in self.others.values() for id in disagreements(self._said, theirs)
            }
            here = sorted((id for id in ids if id in self._index), key=self._index.__getitem__)
            return [(self.picture(id), self._opinions(id)) for id in here[:most]]

    def _opinions(self, picture_id: str) -> dict[str, Said]:
        theirs = {
            name: said[picture_id] for name, said in self.others.items() if picture_id in said
        }
        return {self._annotator: self.said(picture_id), **dict(sorted(theirs.items()))}

    # Saying

    def answer(self, picture_id: str, question: Question, yes: bool) -> None:
        """A yes takes back the reasons that said no."""
        with self._lock:
            said = self.said(picture_id)
            kept = _reasons_but(said, question) if yes else said.reasons
            self._say({picture_id: _answered(said, question, yes)._replace(reasons=kept)})

    def reason(self, picture_id: str, reason: str) -> None:
        """Turns a reason on, which answers its question with no, or off. Raises InputError."""
        if reason not in REASONS:
            raise InputError(f"reason {reason!r}: known are {', '.join(REASONS)}")
        with self._lock:
            said = self.said(picture_id)
            if reason in said.reasons:
                rest = tuple(each for each in said.reasons if each != reason)
                self._say({picture_id: said._replace(reasons=rest)})
            else:
                said = _answered(said, REASONS[reason], False)
                self._say({picture_id: said._replace(reasons=(*said.reasons, reason))})

    def rest(self, picture_id: str) -> None:
        """Yes to what is not answered yet."""
        with self._lock:
            said = self.said(picture_id)
            for question in QUESTIONS:
                if said.answer(question) is None:
                    said = _answered(said, question, True)
            self._say({picture_id: said})

    def sweep(self, picture_ids: Iterable[str]) -> int:
        """The hand is right in each of these that nothing was said of; how many there were."""
        with self._lock:
            new = {
                id: self.said(id)._replace(fidelity=True)
                for id in picture_ids
                if self._item(id).id not in self._gone and self.said(id).fidelity is None
            }
            self._say(new, "grid")
            return len(new)

    def mark(self, picture_id: str, bad: bool) -> None:
        """In a grid: the hand is wrong, or nothing is said of it after all."""
        with self._lock:
            said = self.said(picture_id)
            kept = said.reasons if bad else _reasons_but(said, "fidelity")
            said = said._replace(fidelity=False if bad else None, reasons=kept)
            self._say({picture_id: said}, "grid")


def _answered(said: Said, question: Question, yes: bool) -> Said:
    if question == "fidelity":
        return said._replace(fidelity=yes)
    return said._replace(alignment=yes)


def _reasons_but(said: Said, question: Question) -> tuple[str, ...]:
    return tuple(reason for reason in said.reasons if REASONS.get(reason) != question)
