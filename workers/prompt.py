"""The prompt queue: base prompts in, batches of proposals out."""

from typing import Any

from celery import Task

from pipeline.errors import InputError
from pipeline.types import PromptBatch
from workers import attempts, canvas, resources
from workers.asking import RunCancelled
from workers.celery import app


@app.task(name="prompt", **attempts.PATIENT)
def prompt(task: Task, message: dict[str, Any]) -> None:
    """Have each base prompt described in detail, and send what is to be drawn."""
    batch = PromptBatch.model_validate(message)
    if resources.broker().is_cancelled(batch.run):
        return
    try:
        describer = resources.describer(batch.run)
        described = list(resources.askers().map(describer.describe, batch.bases))
    except InputError as error:  # this machine lacks the key, or a model's tokenizer
        folder, run = resources.folder(batch.run), resources.run(batch.run)
        for base in batch.bases:
            attempts.give_up_base(folder, run, base, attempts.GivenUp(error, 1))
        return
    except RunCancelled:
        return
    prompts = [prompt for prompts in described for prompt in prompts]
    canvas.send_proposals(canvas.batches(resources.run(batch.run), prompts))
