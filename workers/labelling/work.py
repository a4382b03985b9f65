"""Labelling one run: what is read before its page opens, and labels from and to files."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.labels import Label, Said, last_said
from pipeline.types import digest
from storage.labels import LabelSets, picture_key
from storage.progress import records
from storage.runs import RunFolder
from storage.said import as_lines, merged
from workers.labelling.desk import LabelDesk, Opinions
from workers.labelling.formats import read_labels
from workers.labelling.queue import Picture, in_order, pictures
from workers.pages.atomic import replacing
from workers.people.journal import Journal
from workers.people.keeper import Keeper
from workers.people.shelf import Shelf


@dataclass(frozen=True)
class Opened:
    """A desk with all that stands behind it."""

    desk: LabelDesk
    journal: Journal[Label]
    keeper: Keeper[Label]


@dataclass(frozen=True)
class Taken:
    """What came of a file of labels."""

    new: Counter[str]  # labels that the set did not have, by annotator
    without_picture: int  # labels whose pictures the run lacks: they are gone, or another run's


class Work:
    """The label set of a run, in the store and in this machine's journals."""

    def __init__(self, folder: RunFolder, set_name: str, journals: Path) -> None:
        self._folder, self.set_name = folder, set_name
        self._shelf = Shelf(LabelSets(folder.store), set_name, journals)

    @contextmanager
    def open(
        self, annotator: str, *, random_share: float, overlap: float, seed: int
    ) -> Iterator[Opened]:
        """The desk of one annotator; at the end, all that was said is put in the store.

        Raises InputError if the run has no pictures, or another process labels for the annotator.
        """
        run = self._folder.name
        with self._shelf.open(annotator) as (journal, keeper):
            others = self.opinions_but(annotator)
            places = in_order(
                pictures(records(self._folder)),
                {id for theirs in others.values() for id in theirs},
                seed=digest([run, self.set_name, seed]),
                random_share=random_share,
                overlap=overlap,
            )
            if not places:
                raise InputError(f"run {run!r} has no pictures to label yet")
            desk = LabelDesk(
                places,
                journal.lines(),
                others,
                annotator=annotator,
                image_key=lambda id: picture_key(self._folder, id),
                append=keeper.append,
            )
            with keeper:
                yield Opened(desk, journal, keeper)

    def read_image(self, proposal_id: str) -> bytes:
        """Raises ObjectNotFound."""
        return self._folder.read_image(proposal_id)

    def opinions_but(self, annotator: str) -> Opinions:
        """What each other annotator of the set says, in the store and in journals here."""
        opinions: dict[str, dict[str, Said]] = {}
        for name in self._shelf.annotators():
            if name != annotator:
                said = last_said(self._shelf.lines_of(name)).values()
                opinions[name] = {label.id: label.said for label in said}
        return opinions

    def export(self, to: Path) -> int:
        """What counts, of all annotators, one line a picture and annotator; how many there are."""
        count = 0
        with replacing(to) as file:
            for name in self._shelf.annotators():
                labels = list(last_said(self._shelf.lines_of(name)).values())
                file.write(as_lines(labels))
                count += len(labels)
        return count

    def take(self, path: Path) -> Taken:
        """Add the labels of a file, all of them or none.

        Raises InputError, with the line, for what is no label.
        """
        known: dict[str, Picture] = {}

        def complete(said: dict[str, Any]) -> Label:
            if not known:
                known.update((picture.id, picture) for picture in pictures(records(self._folder)))
            picture = known.get(said["id"])
            if picture is None:
                raise InputError(f"run {self._folder.name!r} has no picture {said['id']!r}")
            return Label(
                image=picture_key(self._folder, picture.id),
                prompt=picture.prompt,
                base=picture.base,
                category=picture.category,
                **said,
            )

        by_annotator: dict[str, list[Label]] = {}
        for label in read_labels(path, complete):
            by_annotator.setdefault(label.annotator, []).append(label)
        added: Counter[str] = Counter()
        with ExitStack() as stack:
            opened = {
                name: stack.enter_context(self._shelf.open(name)) for name in sorted(by_annotator)
            }
            for name, (journal, _) in opened.items():
                before = list(journal.lines())
                says = {id: label.said for (_, id), label in last_said(before).items()}
                new = [label for label in by_annotator[name] if says.get(label.id) != label.said]
                journal.replace(as_lines(merged(before, new)))
                added[name] = len(new)
            for _, keeper in opened.values():
                keeper.settle()
        here = set(self._folder.image_ids())
        without = sum(label.id not in here for some in by_annotator.values() for label in some)
        return Taken(+added, without)
