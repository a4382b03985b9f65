"""The verify queue: a batch of pictures is judged, and its records are stored."""

from collections.abc import Sequence
from typing import Any

from celery import Task

from pipeline.pictures import decode, sha256
from pipeline.types import Proposal, ProposalBatch, Record
from storage.objects import ObjectNotFound
from storage.runs import RunFolder
from workers import attempts, resources
from workers.celery import app

Picture = tuple[Proposal, bytes]


@app.task(name="verify", **attempts.PATIENT)
def verify(task: Task, message: dict[str, Any]) -> None:
    """Judge a batch of proposals and keep their records, accepted or not."""
    batch = ProposalBatch.model_validate(message)
    folder = resources.folder(batch.run)
    if resources.broker().is_cancelled(batch.run) or folder.has_records(batch):
        return
    read = resources.threads().map(lambda proposal: _picture(folder, proposal), batch.proposals)
    pictures = [picture for picture in read if picture]

    def give_up(picture: Picture, error: attempts.GivenUp) -> None:
        attempts.give_up(batch.run, "verify", picture[0], error)

    if error := attempts.kills_workers(task, batch.id):
        for picture in pictures:
            give_up(picture, error)
        return
    judged = attempts.divide(pictures, lambda some: _judge(batch.run, some), give_up)
    if judged:
        folder.write_records(batch, [record for _, record in judged])


def _picture(folder: RunFolder, proposal: Proposal) -> Picture | None:
    """None if it was not drawn: that is on record as a failure, or will be found missing."""
    try:
        return proposal, folder.read_image(proposal.id)
    except ObjectNotFound:
        return None


def _judge(run_name: str, pictures: Sequence[Picture]) -> list[Record]:
    run, folder = resources.run(run_name), resources.folder(run_name)
    prompter = run.prompter_ref
    drawings = [decode(png) for _, png in pictures]
    verdicts = resources.verifier(run.verifier, run.verifier_ref).judge(
        [drawing.image for drawing in drawings],
        [proposal.prompt.text for proposal, _ in pictures],
        run.verifier.thresholds,
    )
    return [
        Record(
            id=proposal.id,
            run=run_name,
            proposal=proposal,
            image=folder.image_key(proposal.id),
            image_sha256=sha256(png),
            prompter=prompter,
            verifier=run.verifier_ref,
            verdict=verdict,
            unread_tokens=drawing.unread_tokens,
            upcast=drawing.upcast,
        )
        for (proposal, png), drawing, verdict in zip(pictures, drawings, verdicts, strict=True)
    ]
