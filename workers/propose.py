"""The propose queue: a batch of proposals is drawn, and its pictures are stored."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.utils.log import get_task_logger

from pipeline.pictures import encode
from pipeline.types import Proposal, ProposalBatch
from workers import attempts, logs, metrics, refusal, resources
from workers.celery import app

logger = get_task_logger(__name__)

if TYPE_CHECKING:
    from pipeline.proposer.diffusion import Drawing, Proposer


@app.task(name="propose", **attempts.PATIENT)
@attempts.patiently
def propose(task: Task, message: dict[str, Any]) -> dict[str, Any]:
    """Draw what the store does not have yet; the same batch goes on to the verifier."""
    batch = refusal.admit(ProposalBatch, message)
    logs.about(batch.run, batch.id)
    if resources.broker().is_cancelled(batch.run):
        return message
    folder = resources.folder(batch.run)
    missing: Sequence[Proposal] = batch.proposals
    # Asking costs a request each; a message that was never sent before has nothing there.
    if batch.again or attempts.is_repeated(task):
        there = list(resources.threads().map(lambda each: folder.has_image(each.id), missing))
        missing = [each for each, done in zip(missing, there, strict=True) if not done]

    def give_up(proposal: Proposal, error: attempts.GivenUp) -> None:
        attempts.give_up(batch.run, "propose", proposal, error)

    if missing and (error := attempts.kills_workers(task, batch)):
        for proposal in missing:
            give_up(proposal, error)
        attempts.settled(task, batch)
        return message

    if missing:
        config = resources.run(batch.run).proposer
        try:
            proposer = attempts.persist(lambda: resources.proposer(config, batch.proposer.base))
        except attempts.GivenUp as error:
            for proposal in missing:
                give_up(proposal, error)
            return message
        _draw(batch, missing, proposer, give_up)
    attempts.settled(task, batch)
    return message


def _draw(
    batch: ProposalBatch,
    missing: Sequence[Proposal],
    proposer: "Proposer",
    give_up: Callable[[Proposal, attempts.GivenUp], None],
) -> None:
    """Pass after pass; while one is drawn, the pictures of the last are encoded and stored."""
    folder = resources.folder(batch.run)

    def draw(some: Sequence[Proposal]) -> "list[Drawing]":
        with metrics.at_work("propose", len(some)):
            return proposer.draw(
                [proposal.prompt.text for proposal in some],
                [proposal.seed for proposal in some],
                batch.sampler,
                batch.proposer.adapter,
            )

    def keep(proposal: Proposal, drawing: "Drawing") -> None:
        folder.write_image(proposal.id, encode(drawing, proposal))
        metrics.count("drawn", proposer=batch.proposer.label)

    under_way: list[Future[None]] = []
    left = list(missing)
    while left:
        size = proposer.batch_size(batch.sampler)  # it falls when memory runs out
        some, left = left[:size], left[size:]
        for proposal, drawing in attempts.divide(some, draw, give_up):
            under_way.append(resources.threads().submit(keep, proposal, drawing))
    for each in under_way:
        each.result()
    logger.info("%d drawn; so far %s", len(missing), proposer.effort.summary())
