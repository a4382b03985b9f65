"""The prompt queue: base prompts in, batches of proposals out."""

from typing import Any

from celery import Task

from pipeline.errors import InputError
from pipeline.types import BasePrompt, DetailedPrompt, PromptBatch
from workers import attempts, canvas, resources
from workers.asking import RunCancelled
from workers.celery import app
from workers.flight import Entry


@app.task(name="prompt", **attempts.PATIENT)
def prompt(task: Task, message: dict[str, Any]) -> None:
    """Have each base prompt described in detail, and send what is to be drawn."""
    batch = PromptBatch.model_validate(message)
    if resources.broker().is_cancelled(batch.run):
        return
    try:
        describer = resources.describer(batch.run)
        described = list(resources.askers().map(describer.describe, batch.bases))
    except InputError as error:  # a wrong key or model, or this machine lacks a tokenizer
        described = [_stored_or_failed(batch.run, base, error) for base in batch.bases]
    except RunCancelled:
        return
    prompts = [prompt for prompts in described for prompt in prompts]
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
