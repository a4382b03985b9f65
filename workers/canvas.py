"""How a base prompt becomes tasks; the only place that knows Celery's primitives.

    prompt(16 base prompts)
        -> group( chain( propose(32 proposals), verify(the same) ), chain(...), ... )

Batches are cut here, upstream, at the size of one forward pass, and a message is a whole batch:
that is what carries thousands of proposals a second through Redis. There is no chord and no
result; that a run is complete is seen in the store.
"""

from collections.abc import Iterable, Iterator

from celery import Signature, chain, group

from pipeline.config import Run
from pipeline.types import DetailedPrompt, PromptBatch, ProposalBatch, seed_of
from workers.celery import app


def batches(run: Run, prompts: Iterable[DetailedPrompt]) -> Iterator[ProposalBatch]:
    """Every proposal of these detailed prompts, in batches of one proposer each."""
    images = [
        (prompt, seed_of(prompt, image))
        for prompt in prompts
        for image in range(run.proposer.images_per_prompt)
    ]
    size = run.proposer.batch_size
    for proposer in run.proposers:
        for start in range(0, len(images), size):
            some = images[start : start + size]
            yield ProposalBatch.of(run.name, proposer, run.proposer.sampler, some)


def send_prompts(batch: PromptBatch) -> None:
    """Have these base prompts worked on, all the way."""
    shown = f"{batch.run}: {len(batch.bases)} base prompts, {batch.bases[0].text[:60]!r} first"
    _signature("prompt", batch.model_dump(mode="json"), shown=shown).apply_async()


def send_proposals(batches: Iterable[ProposalBatch]) -> None:
    """Have these proposals drawn, and then judged."""
    chains = []
    for batch in batches:
        count, first = sum(len(draw.seeds) for draw in batch.draws), batch.draws[0].prompt.text
        shown = f"{batch.run}: {count} proposals, {first[:60]!r} first"
        chains.append(
            chain(
                _signature("propose", batch.model_dump(mode="json"), shown=shown),
                _signature("verify", shown=shown),
            )
        )
    if chains:
        group(chains).apply_async()


def _signature(task: str, *arguments: object, shown: str) -> Signature:
    """shown: what Flower prints in place of the arguments."""
    return app.signature(task, args=arguments, queue=task, argsrepr=shown, kwargsrepr="")
