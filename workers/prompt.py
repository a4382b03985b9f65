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
        describer = resources.describer(batch.run)
        with metrics.at_work("prompt", len(batch.bases)):
            described = list(resources.askers().map(describer.describe, batch.bases))
    except ModelNotHere:
        raise
    except InputError as error:  # a wrong key or model
        described = [_stored_or_failed(batch.run, base, error) for base in batch.bases]
    except RunCancelled:
        return
    prompts = [prompt for prompts in described for prompt in prompts]
    metrics.count("base_prompts", len(batch.bases))
    logger.info("%d base prompts described in %d prompts", len(batch.bases), len(prompts))
    again = batch.again or attempts.is_repeated(task)
    made = list(canvas.batches(resources.run(batch.run), prompts, again=again))
    if resources.flight(batch.run).move(batch, made) is not Entry.CANCELLED:
        canvas.send_proposals(made)


def _stored_or_failed(run: str, base: BasePrompt, error: InputError) -> tuple[DetailedPrompt, ...]:
    """What the base prompt has already; nothing more can be had here."""
    folder = resources.folder(run)
    if stored := folder.read_expansion(base):
        return stored.prompts
    attempts.give_up_base(folder, resources.run(run), base, attempts.GivenUp(error, 1))
    return ()
