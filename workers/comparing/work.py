"""Comparing by people: a study made from runs, an annotator's desk, and what came of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from pipeline.choices import Choice, Request, Study
from pipeline.errors import InputError
from pipeline.evaluation.human import Result, result_of
from pipeline.evaluation.pairing import Picture, study_of, turns
from pipeline.evaluation.suites import load_suite
from pipeline.types import Record, RunName, digest
from storage.objects import ObjectStore
from storage.progress import Progress
from storage.runs import RunFolder
from storage.studies import Studies
from workers.comparing.desk import ChoiceDesk
from workers.pages.wording import count
from workers.people.journal import Journal
from workers.people.keeper import Keeper
from workers.people.shelf import Shelf

MOST_BYTES = 64 * 1024 * 1024  # of a models.json


class _Model(BaseModel):
    run: RunName


class _Arm(BaseModel):
    models: list[_Model] = Field(min_length=1)


class _Models(BaseModel):
    """What is read of a models.json."""

    arms: dict[Annotated[str, StringConstraints(min_length=1, max_length=200)], _Arm] = Field(
        min_length=2
    )


def arms_in(path: Path) -> dict[str, str]:
    """The runs of a models.json, by label, in its order; an arm of several models shows its first.

    Raises InputError for a file that cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"{path} is larger than {MOST_BYTES:,} bytes")
    try:
        models = _Models.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path} is no models.json of `ppv evaluate models`: "
            f"{where}{': ' if where else ''}{' '.join(first['msg'].split())}"
        ) from None
    return {label: arm.models[0].run for label, arm in models.arms.items()}


def make_study(
    store: ObjectStore,
    name: str,
    arms: Mapping[str, str],
    suites: list[str],
    *,
    pairs: int,
    check_share: float,
    seed: int,
) -> Study:
    """The study of these runs' pictures; the one that is there, if it was made from the same.

    suites: what it is confined to; nothing: all prompts that the arms have in common.
    Raises InputError if the name is taken, and for runs that cannot be compared.
    """
    prompts = {line.prompt for suite in suites for line in load_suite(suite).lines}
    request = Request(
        arms=dict(arms),
        prompts=digest(sorted(prompts)) if suites else None,
        pairs=pairs,
        check_share=check_share,
        seed=seed,
    )
    studies = Studies(store)
    found = studies.find(name)
    if found:
        if found.request != request or list(found.request.arms) != list(arms):
            raise InputError(
                f"study {name!r} is there and was made otherwise: give another name, or leave out "
                "--models to go on with it"
            )
        return found
    pictures, unfinished = {}, []
    for label, run in arms.items():
        pictures[label], missing = _drawn(RunFolder(store, run), prompts if suites else None)
        if missing:
            unfinished.append(
                f"arm {label!r} was not finished when the study was made: {count(missing)} "
                "pictures were missing"
            )
    study = study_of(request, pictures)
    study = study.model_copy(update={"notes": (*study.notes, *unfinished)})
    studies.write(name, study)
    return study


def _drawn(folder: RunFolder, prompts: set[str] | None) -> tuple[list[Picture], int]:
    """A run's pictures of these prompts, or of all, and how many it still misses of any."""
    pictures: list[Picture] = []

    def keep(record: Record) -> None:
        if prompts is None or record.proposal.prompt.text in prompts:
            pictures.append(Picture.of(record))

    return pictures, Progress(folder).update(keep).missing


@dataclass(frozen=True)
class Opened:
    """A desk with all that stands behind it."""

    desk: ChoiceDesk
    journal: Journal[Choice]
    keeper: Keeper[Choice]


class Comparing:
    """A study's choices, in the store and in this machine's journals."""

    def __init__(self, store: ObjectStore, name: str, journals: Path) -> None:
        """Raises InputError if there is no such study."""
        studies = Studies(store)
        self.name, self.study, self._store = name, studies.study(name), store
        self._shelf = Shelf(studies, name, journals)

    @contextmanager
    def open(self, annotator: str) -> Iterator[Opened]:
        """The desk of one annotator; at the end, all that was said is put in the store.

        Raises InputError if another process has it.
        """
        with self._shelf.open(annotator) as (journal, keeper):
            desk = ChoiceDesk(
                turns(self.study, digest([self.name, annotator])),
                journal.lines(),
                annotator=annotator,
                append=keeper.append,
            )
            with keeper:
                yield Opened(desk, journal, keeper)

    def read_image(self, run: str, proposal_id: str) -> bytes:
        """Raises ObjectNotFound."""
        return RunFolder(self._store, run).read_image(proposal_id)

    def result(self, everybody: bool = False) -> Result:
        """Of what everybody said so far.

        Raises InputError if nobody said anything, or nobody who counts.
        """
        said = (line for name in self._shelf.annotators() for line in self._shelf.lines_of(name))
        result = result_of(self.study, said, everybody=everybody)
        if not result.annotators:
            raise InputError(f"nobody has compared anything in study {self.name!r} yet")
        if not result.counted:
            why = "; ".join(f"{name} {it.why_not}" for name, it in result.annotators.items())
            raise InputError(
                f"study {self.name!r}: nobody's answers count: {why}; --everybody counts them"
            )
        return result
