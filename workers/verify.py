"""The verify queue: a batch of pictures is judged, and its records are stored."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.utils.log import get_task_logger

from pipeline.errors import ItemError, PpvError
from pipeline.pictures import decode, sha256
from pipeline.types import Proposal, ProposalBatch, Record
from storage.objects import ObjectNotFound
from storage.runs import RunFolder
from workers import attempts, logs, metrics, refusal, resources
from workers.asking import RunCancelled
from workers.celery import app

if TYPE_CHECKING:
    from pipeline.proposer.diffusion import Drawing

logger = get_task_logger(__name__)

PICTURES_AT_ONCE = 32  # judged while the next ones are read and decoded


@dataclass(frozen=True)
class Picture:
    """A proposal's picture, as it is stored and as it is seen."""

    proposal: Proposal
    sha256: str
    drawing: "Drawing"


@app.task(name="verify", **attempts.PATIENT)
@attempts.patiently
def verify(task: Task, message: dict[str, Any]) -> None:
    """Judge a batch of proposals and keep their records, accepted or not."""
    batch = refusal.admit(ProposalBatch, message)
    logs.about(batch.run, batch.id)
    _verify(task, batch)
    attempts.settled(task, batch)
    resources.flight(batch.run).leave(batch)


def _verify(task: Task, batch: ProposalBatch) -> None:
    folder = resources.folder(batch.run)
    if resources.broker().is_cancelled(batch.run) or folder.has_records(batch):
        return
    if error := attempts.kills_workers(task, batch):
        for proposal in batch.proposals:
            if folder.has_image(proposal.id):
                attempts.give_up(batch.run, "verify", proposal, error)
        return
    read = resources.threads().map(lambda proposal: _read(folder, proposal), batch.proposals)
    records: list[Record] = []
    for pictures in _parts(picture for picture in read if picture):
        for picture, said in _judged(batch.run, pictures):
            if isinstance(said, RunCancelled):
                return
            if isinstance(said, Record):
                records.append(said)
            else:
                _give_up(batch.run, picture, attempts.GivenUp(said, 1))
    if records:
        folder.write_records(batch, records)
        metrics.count_verdicts(records)
        accepted = sum(record.verdict.accepted for record in records)
        logger.info("%d judged, %d accepted", len(records), accepted)


def _read(folder: RunFolder, proposal: Proposal) -> Picture | None:
    """None if it was not drawn: that is on record as a failure, or will be found missing."""
    try:
        png = folder.read_image(proposal.id)
    except ObjectNotFound:
        return None
    try:
        return Picture(proposal, sha256(png), decode(png))
    except ItemError as error:
        attempts.give_up(folder.name, "verify", proposal, attempts.GivenUp(error, 1))
        return None


def _parts(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    left = iter(pictures)
    while part := list(islice(left, PICTURES_AT_ONCE)):
        yield part


def _judged(run: str, pictures: Sequence[Picture]) -> list[tuple[Picture, Record | PpvError]]:
    """Each picture with its record, or with why second opinions on it could not be asked for."""
    return attempts.divide(
        pictures,
        lambda some: _judge(run, some),
        lambda picture, error: _give_up(run, picture, error),
    )


def _give_up(run: str, picture: Picture, error: attempts.GivenUp) -> None:
    attempts.give_up(run, "verify", picture.proposal, error)


def _judge(run_name: str, pictures: Sequence[Picture]) -> list[Record | PpvError]:
    from pipeline.verifier.opinions import hear_all, with_opinions

    run, folder = resources.run(run_name), resources.folder(run_name)
    prompter = run.prompter_ref
    images = [picture.drawing.image for picture in pictures]
    prompts = [picture.proposal.prompt.text for picture in pictures]
    verifier = resources.verifier(run.verifier, run.verifier_ref)
    with metrics.at_work("verify", len(images)):
        verdicts = verifier.judge(images, prompts, run.thresholds)
        heard = hear_all(resources.opinions(run_name), images, prompts)
    return [
        said.error
        or Record(
            id=picture.proposal.id,
            run=run_name,
            proposal=picture.proposal,
            image=folder.image_key(picture.proposal.id),
            image_sha256=picture.sha256,
            prompter=prompter,
            verifier=run.verifier_ref,
            verdict=with_opinions(verdict, said, run.verifier.accept_if),
            unread_tokens=picture.drawing.unread_tokens,
            upcast=picture.drawing.upcast,
            usage=said.usage,
        )
        for picture, verdict, said in zip(pictures, verdicts, heard, strict=True)
    ]
