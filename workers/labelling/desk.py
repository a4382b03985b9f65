"""One annotator's desk: the pictures in their order, what was said of them, and how to go back."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from pipeline.errors import InputError
from pipeline.evaluation.agreement import Agreement, agreement, disagreements
from pipeline.labels import QUESTIONS, REASONS, Chosen, Label, Question, Said
from pipeline.labels import now as time_now
from workers.labelling.queue import Picture, Place

AHEAD = 3  # pictures that the browser loads before they are asked for
SWEEP = 100  # pictures of a grid
STEPS = 1000  # that can be taken back

Opinions = Mapping[str, Mapping[str, Said]]
"""What each other annotator says, by picture."""


@dataclass(frozen=True)
class Progress:
    total: int
    labelled: int  # both questions answered
    begun: int  # one of them
    skipped: int
    gone: int


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


@dataclass(frozen=True)
class Step:
    """What one key changed: what was said before of each of these pictures."""

    before: tuple[tuple[str, Said], ...] = ()
    skipped: str = ""

    @property
    def ids(self) -> list[str]:
        return [self.skipped] if self.skipped else [id for id, _ in self.before]


class Desk:
    """Safe to share between threads. What it was told is in the journal when a method returns."""

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
        """earlier: what this annotator said before, oldest first. image_key: of a picture's id.

        append: makes labels last before it returns, or raises.
        """
        self._places = places
        self._index = {place.picture.id: i for i, place in enumerate(places)}
        self._annotator, self._image_key, self._append = annotator, image_key, append
        self._lock = threading.RLock()
        self._said: dict[str, Said] = {}
        self._values: dict[Said, Said] = {}  # equal opinions are held once
        self._steps: deque[Step] = deque(maxlen=STEPS)
        self._skipped: set[str] = set()
        self._gone: set[str] = set()
        self._news: list[str] = []  # of pictures that are gone, not shown yet
        self._labelled = self._begun = self._first = 0
        self.others = others
        for label in earlier:
            self._replay(label)

    # Looking

    def view(self, picture_id: str | None = None, note: str = "") -> View:
        """The picture of this id, or the next one that is open."""
        with self._lock:
            chosen = self._index.get(picture_id) if picture_id else None
            if chosen is None:
                chosen = next(self._open(), None)
            picture = None if chosen is None else self._places[chosen].picture
            ahead = (i for i in self._open() if i != chosen)
            return View(
                picture=picture,
                said=self.said(picture.id) if picture else Said(),
                last=self._last(picture),
                ahead=tuple(self._places[i].picture for i in islice(ahead, AHEAD)),
                progress=Progress(
                    total=len(self._places),
                    labelled=self._labelled,
                    begun=self._begun,
                    skipped=len(self._skipped),
                    gone=len(self._gone),
                ),
                agreements={
                    name: {q: agreement(self._said, theirs, q) for q in QUESTIONS}
                    for name, theirs in sorted(self.others.items())
                },
                can_undo=bool(self._steps),
                note=note or self._tell_news(),
            )

    def _tell_news(self) -> str:
        """Once."""
        if not self._news:
            return ""
        first, *others = self._news
        self._news = []
        return f"Passed over: {first}{f', and {len(others)} more' if others else ''}."

    def _last(self, now: Picture | None) -> tuple[Picture, Said] | None:
        ids = self._steps[-1].ids if self._steps else []
        last = self._places[self._index[ids[0]]].picture if len(ids) == 1 else None
        return None if last is None or last == now else (last, self.said(last.id))

    def said(self, picture_id: str) -> Said:
        return self._said.get(picture_id, Said())

    def picture(self, picture_id: str) -> Picture:
        """Raises InputError if the page has no such picture."""
        return self._place(picture_id).picture

    def to_sweep(self) -> list[Picture]:
        """The next pictures whose fidelity is open."""
        with self._lock:
            found = (
                place.picture
                for place in map(self._places.__getitem__, self._open())
                if self.said(place.picture.id).fidelity is None
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
                if self._place(id).picture.id not in self._gone and self.said(id).fidelity is None
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

    def skip(self, picture_id: str) -> None:
        """Until the next start."""
        with self._lock:
            self._place(picture_id)
            if picture_id not in self._skipped:
                self._skipped.add(picture_id)
                self._steps.append(Step(skipped=picture_id))

    def gone(self, picture_id: str, why: str) -> None:
        """It cannot be shown, and comes no more. What was said of it stays."""
        with self._lock:
            if picture_id in self._index and picture_id not in self._gone:
                self._gone.add(picture_id)
                self._news.append(f"picture {picture_id}, which {why}")

    def undo(self) -> list[str]:
        """Takes the last step back; the pictures that it was about."""
        with self._lock:
            if not self._steps:
                return []
            step = self._steps[-1]
            self._write(dict(step.before))
            self._steps.pop()
            if step.skipped:
                self._skipped.discard(step.skipped)
                self._reopen(step.skipped)
            return step.ids

    # Keeping

    def _say(self, new: Mapping[str, Said], chosen: Chosen = "") -> None:
        changed = {id: said for id, said in new.items() if said != self.said(id)}
        before = tuple((id, self.said(id)) for id in changed)
        self._write(changed, chosen)
        if before:
            self._steps.append(Step(before=before))

    def _write(self, new: Mapping[str, Said], chosen: Chosen = "") -> None:
        at = time_now()
        labels = []
        for id, said in new.items():
            place = self._place(id)
            label = Label(
                id=id,
                image=self._image_key(id),
                prompt=place.picture.prompt,
                base=place.picture.base,
                category=place.picture.category,
                fidelity=said.fidelity,
                alignment=said.alignment,
                reasons=said.reasons,
                annotator=self._annotator,
                at=at,
                chosen=chosen or place.chosen,
            )
            labels.append(label)
        if labels:
            self._append(labels)
        for id, said in new.items():
            self._keep(id, said)

    def _keep(self, picture_id: str, said: Said) -> None:
        if picture_id in self._index:
            old = self.said(picture_id)
            self._labelled += said.whole - old.whole
            self._begun += _is_begun(said) - _is_begun(old)
            self._reopen(picture_id)
        if said == Said():
            self._said.pop(picture_id, None)
        else:
            self._said[picture_id] = self._values.setdefault(said, said)

    def _replay(self, label: Label) -> None:
        """As if it were said again, so that what was said before a restart can be taken back."""
        said = Said() if label.fidelity is None and label.alignment is None else label.said
        before = self.said(label.id)
        if label.id in self._index:
            last = self._steps[-1] if self._steps else Step()
            if last.before == ((label.id, said),):
                self._steps.pop()  # this was an undo
            else:
                self._steps.append(Step(before=((label.id, before),)))
        self._keep(label.id, said)

    # The order

    def _open(self) -> Iterator[int]:
        """The turns that are still to come, in their order."""
        while self._first < len(self._places) and self._closed(self._first):
            self._first += 1
        return (i for i in range(self._first, len(self._places)) if not self._closed(i))

    def _closed(self, index: int) -> bool:
        id = self._places[index].picture.id
        return id in self._skipped or id in self._gone or self.said(id).whole

    def _reopen(self, picture_id: str) -> None:
        self._first = min(self._first, self._index[picture_id])

    def _place(self, picture_id: str) -> Place:
        index = self._index.get(picture_id)
        if index is None:
            raise InputError(f"no picture {picture_id!r} on this page")
        return self._places[index]


def _answered(said: Said, question: Question, yes: bool) -> Said:
    if question == "fidelity":
        return said._replace(fidelity=yes)
    return said._replace(alignment=yes)


def _reasons_but(said: Said, question: Question) -> tuple[str, ...]:
    return tuple(reason for reason in said.reasons if REASONS.get(reason) != question)


def _is_begun(said: Said) -> bool:
    return (said.fidelity is None) != (said.alignment is None)
