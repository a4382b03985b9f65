"""The prompt queue: base prompts in, batches of proposals out."""

from typing import Any

from celery import Task
from celery.utils.log import get_task_logger

from pipeline.errors import InputError, ModelNotHere
from pipeline.types import BasePrompt, DetailedPrompt, PromptBatch
from workers import attempts, canvas, logs, metrics, refusal, resources
from workers.asking import RunCancelled
from workers.celery import app
from workers.flight import Entry

logger = get_task_logger(__name__)


@app.task(name="prompt", **attempts.PATIENT)
@attempts.patiently
def prompt(task: Task, message: dict[str, Any]) -> None:
    """Have each base prompt described in detail, and send what is to be drawn."""
    batch = refusal.admit(PromptBatch, message)
    logs.about(batch.run, batch.id)
    if resources.broker().is_cancelled(batch.run):
        return
    try:
        described = _describe(task, batch)
    except RunCancelled:
        return
    prompts = [prompt for prompts in described for prompt in prompts]
    metrics.count("base_prompts", len(batch.bases))
    logger.info("%d base prompts described in %d prompts", len(batch.bases), len(prompts))
    again = batch.again or attempts.is_repeated(task)
    run = resources.run(batch.run)
    made = list(canvas.batches(run, prompts, again=again))
    if resources.flight(batch.run).move(run, batch, made) is not Entry.CANCELLED:
        canvas.send_proposals(made)
    attempts.settled(task, batch)


def _describe(task: Task, batch: PromptBatch) -> list[tuple[DetailedPrompt, ...]]:
    """The detailed prompts of each base prompt. Raises RunCancelled."""
    error = attempts.kills_workers(task, batch)
    if error is None:
        try:
            describer = resources.describer(batch.run)
            with metrics.at_work("prompt", len(batch.bases)):
                return list(resources.askers().map(describer.describe, batch.bases))
        except ModelNotHere:
            raise
        except InputError as wrong:  # key or model
            error = attempts.GivenUp(wrong, 1)
    return [_stored_or_failed(batch.run, base, error) for base in batch.bases]


def _stored_or_failed(
    run: str, base: BasePrompt, error: attempts.GivenUp
) -> tuple[DetailedPrompt, ...]:
    """What the base prompt has already; nothing more can be had here."""
    folder = resources.folder(run)
    if stored := folder.read_expansion(base):
        return stored.prompts
    attempts.give_up_base(folder, resources.run(run), base, error)
    return ()
