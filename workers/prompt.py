"""The prompt queue: base prompts in, batches of proposals out."""

from typing import Any

from celery import Task

from pipeline.types import BasePrompt, DetailedPrompt, Failure, PromptBatch
from workers import attempts, canvas, resources
from workers.celery import app


@app.task(name="prompt", **attempts.PATIENT)
def prompt(task: Task, message: dict[str, Any]) -> None:
    """Have each base prompt described in detail, and send what is to be drawn."""
    batch = PromptBatch.model_validate(message)
    if resources.broker().is_cancelled(batch.run):
        return
    described = resources.threads().map(lambda base: _prompts_of(batch.run, base), batch.bases)
    prompts = [prompt for prompts in described for prompt in prompts]
    canvas.send_proposals(canvas.batches(resources.run(batch.run), prompts))


def _prompts_of(run: str, base: BasePrompt) -> tuple[DetailedPrompt, ...]:
    """Those in the store, else fresh ones; none, and a failure on record, if there are none."""
    folder = resources.folder(run)
    stored = folder.read_prompts(base)
    if stored is not None:
        return stored
    try:
        prompts = attempts.persist(lambda: resources.prompter(run).expand(base))
    except attempts.GivenUp as error:
        folder.write_failure(
            Failure(
                id=base.id, stage="prompt", subject=base.text, error=str(error), tries=error.tries
            )
        )
        return ()
    folder.write_prompts(base, prompts)
    return prompts
