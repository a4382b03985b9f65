"""How a base prompt becomes tasks; the only place that knows Celery's primitives.

    prompt(16 base prompts)
        -> group( chain( propose(64 proposals), verify(the same) ), chain(...), ... )

Batches are cut here, upstream, and a message is a whole batch: that is what carries thousands of
proposals a second through Redis. There is no chord and no
result; that a run is complete is seen in the store.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from celery import Signature, chain, group

from pipeline.config import Run
from pipeline.routing import who_draws
from pipeline.types import Batch, DetailedPrompt, PromptBatch, ProposalBatch, ProposerRef, seed_of
from workers.celery import app

T = TypeVar("T")


def batches(
    run: Run, prompts: Iterable[DetailedPrompt], *, again: bool = False
) -> Iterator[ProposalBatch]:
    """Every proposal of these detailed prompts, in batches of one proposer each.

    So a worker changes its adapter once a batch at most. again: they may have been sent before.
    """
    images: dict[ProposerRef, list[tuple[DetailedPrompt, int]]] = {}
    for prompt in prompts:
        for image in range(run.proposer.images_per_prompt):
            for proposer in who_draws(run, prompt, image):
                images.setdefault(proposer, []).append((prompt, seed_of(prompt, image)))
    for proposer, drawn in images.items():
        for some in _evenly(drawn, run.proposer.images_per_message):
            yield ProposalBatch.of(run.name, proposer, run.proposer.sampler, some, again=again)


def _evenly(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Parts of at most so many, as few and as equal as can be: 32 and 1 would draw as 17 and 16."""
    parts = -(-len(items) // most)
    for part in range(parts):
        yield items[len(items) * part // parts : len(items) * (part + 1) // parts]


def alone(batch: Batch) -> Iterator[Batch]:
    """Each item of a message in one of its own: one that does harm does it to no other then."""
    if isinstance(batch, PromptBatch):
        for base in batch.bases:
            yield PromptBatch(run=batch.run, bases=(base,), again=True)
        return
    for each in batch.proposals:
        pair = (each.prompt, each.seed)
        yield ProposalBatch.of(batch.run, batch.proposer, batch.sampler, [pair], again=True)


def send(batch: Batch) -> None:
    """Have this worked on, all the way."""
    if isinstance(batch, PromptBatch):
        send_prompts(batch)
    else:
        send_proposals([batch])


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
