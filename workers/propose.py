"""The propose queue: a batch of proposals is drawn, and its pictures are stored."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from celery import Task

from pipeline.pictures import encode
from pipeline.types import Proposal, ProposalBatch
from workers import attempts, resources
from workers.celery import app

if TYPE_CHECKING:
    from pipeline.proposer.diffusion import Drawing


@app.task(name="propose", **attempts.PATIENT)
def propose(task: Task, message: dict[str, Any]) -> dict[str, Any]:
    """Draw what the store does not have yet; the same batch goes on to the verifier."""
    batch = ProposalBatch.model_validate(message)
    if resources.broker().is_cancelled(batch.run):
        return message
    folder = resources.folder(batch.run)
    missing = [each for each in batch.proposals if not folder.has_image(each.id)]

    def give_up(proposal: Proposal, error: attempts.GivenUp) -> None:
        attempts.give_up(batch.run, "propose", proposal, error)

    if error := attempts.kills_workers(task, batch.id):
        for proposal in missing:
            give_up(proposal, error)
        return message

    def draw(proposals: Sequence[Proposal]) -> "list[Drawing]":
        config = resources.run(batch.run).proposer
        return resources.proposer(config, batch.proposer).draw(
            [proposal.prompt.text for proposal in proposals],
            [proposal.seed for proposal in proposals],
            batch.sampler,
        )

    def keep(drawn: "tuple[Proposal, Drawing]") -> None:
        proposal, drawing = drawn
        folder.write_image(proposal.id, encode(drawing, proposal))

    list(resources.threads().map(keep, attempts.divide(missing, draw, give_up)))
    return message
